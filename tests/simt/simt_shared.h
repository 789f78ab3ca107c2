// Shared memory with its watchdog. A granule is two bytes; for each is kept whether it was written,
// who wrote it last and who has read it since, and at which barrier.
//
// Two accesses of different threads, one a write, are ordered when a block barrier lies between
// them, or when both are of one warp and a warp barrier does. Operations of a warp (shuffles,
// matrix products) do not order memory.
#ifndef TSR_TESTS_SIMT_SIMT_SHARED_H
#define TSR_TESTS_SIMT_SIMT_SHARED_H

namespace simt {

#ifdef TSR_SIMT_UNCHECKED
// For whole programs, whose kernels have passed their tests: without the watchdog, and asynchronous
// copies are made at once (fake/fake_shared.cc).
extern unsigned char *shared_now; // of the block that runs
inline void *shared_read(int at, int, int, int) {
    return shared_now + at;
}
inline void *shared_write(int at, int, int, int) {
    return shared_now + at;
}
inline void copy_async(int at, int n_bytes, int, int, const void *src, int n_src) {
    if (n_src > 0)
        memcpy(shared_now + at, src, (size_t)n_src);
    memset(shared_now + at + n_src, 0, (size_t)(n_bytes - n_src));
}
inline void copy_commit() {
}
inline void copy_wait(int) {
}
#else
// Checked accesses: [at, at + n_bytes) of the block's shared memory, inside [lo, hi).
void *shared_read(int at, int n_bytes, int lo, int hi);
void *shared_write(int at, int n_bytes, int lo, int hi);
// Asynchronous copies of 4 or 16 bytes: the first n_src from src, then zeros.
void copy_async(int at, int n_bytes, int lo, int hi, const void *src, int n_src);
void copy_commit();
void copy_wait(int groups_left);
#endif

template <class T> class ref;

// A pointer into shared memory that knows its array.
template <class T> class shared {
  public:
    int at = 0, lo = 0, hi = 0;
    shared() = default;
    shared(int at_, int lo_, int hi_) : at(at_), lo(lo_), hi(hi_) {
    }
    template <class I> shared operator+(I n) const {
        return {at + (int)n * (int)sizeof(T), lo, hi};
    }
    template <class I> ref<T> operator[](I n) const {
        return ref<T>(*this + n);
    }
    ref<T> operator*() const {
        return ref<T>(*this);
    }
};

template <class T> class ref {
    shared<T> p;

  public:
    explicit ref(shared<T> p_) : p(p_) {
    }
    operator T() const {
        T x;
        memcpy(&x, shared_read(p.at, sizeof(T), p.lo, p.hi), sizeof(T));
        return x;
    }
    ref &operator=(T x) {
        memcpy(shared_write(p.at, sizeof(T), p.lo, p.hi), &x, sizeof(T));
        return *this;
    }
    ref &operator=(const ref &other) {
        return *this = (T)other;
    }
    ref &operator+=(T x) {
        return *this = (T) * this + x;
    }
};

} // namespace simt

template <class T> using smem = simt::shared<T>;

// Carves arrays out of the block's dynamic shared memory, each aligned to 16 bytes.
struct shared_cursor {
    int at = 0;
    template <class T> smem<T> take(size_t n) {
        int lo = at, bytes = (int)(n * sizeof(T));
        at += (bytes + 15) / 16 * 16;
        if (at > simt::now.shared_bytes)
            simt::stop("needs %d bytes of shared memory, the launch gives %d", at,
                       simt::now.shared_bytes);
        return {lo, lo, lo + bytes};
    }
};

template <class U, class T> inline smem<U> smem_cast(smem<T> p) {
    return {p.at, p.lo, p.hi};
}

// Sixteen bytes at once.
template <class T> inline uint4 shared_load16(smem<T> p) {
    uint4 x;
    memcpy(&x, simt::shared_read(p.at, 16, p.lo, p.hi), 16);
    return x;
}
template <class T> inline void shared_store16(smem<T> p, uint4 x) {
    memcpy(simt::shared_write(p.at, 16, p.lo, p.hi), &x, 16);
}

template <class T> inline void cp_async16(smem<T> dst, const T *src, bool valid) {
    simt::copy_async(dst.at, 16, dst.lo, dst.hi, src, valid ? 16 : 0);
}
template <class T> inline void cp_async16_first(smem<T> dst, const T *src, int n_bytes) {
    simt::copy_async(dst.at, 16, dst.lo, dst.hi, src, n_bytes);
}
inline void cp_async4(smem<float> dst, const float *src, bool valid) {
    simt::copy_async(dst.at, 4, dst.lo, dst.hi, src, valid ? 4 : 0);
}
inline void cp_async_commit() {
    simt::copy_commit();
}
template <int N> inline void cp_async_wait() {
    simt::copy_wait(N);
}

#endif
