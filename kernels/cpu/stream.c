#include "kernels/cpu/stream.h"

#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>

enum { LINE = 64 }; // bytes

void tsr_stream_copy(void *dst, const void *src, size_t n_bytes) {
    char *to = dst;
    const char *from = src;
    size_t head = (LINE - (uintptr_t)to % LINE) % LINE;
    head = head < n_bytes ? head : n_bytes;
    memcpy(to, from, head);
    size_t i = head;
    for (; n_bytes - i >= LINE; i += LINE) { // whole lines; asking for them early only costs
        const __m128i *p = (const __m128i *)(const void *)(from + i);
        __m128i *q = (__m128i *)(void *)(to + i);
        __m128i a = _mm_loadu_si128(p), b = _mm_loadu_si128(p + 1);
        __m128i c = _mm_loadu_si128(p + 2), d = _mm_loadu_si128(p + 3);
        _mm_stream_si128(q, a);
        _mm_stream_si128(q + 1, b);
        _mm_stream_si128(q + 2, c);
        _mm_stream_si128(q + 3, d);
    }
    memcpy(to + i, from + i, n_bytes - i);
    _mm_sfence(); // such stores are ordered with nothing else
}

#else

void tsr_stream_copy(void *dst, const void *src, size_t n_bytes) {
    memcpy(dst, src, n_bytes);
}

#endif
