// Products by cuBLASLt. Its matrices stand in columns, ours in rows, so it is asked for
// C^T (n, m) = B^T A^T: its left operand is our B, and a bias along its rows is ours along n.
//
// Segments of k that lie side by side are one product, whatever their pieces; others are added by
// one product each, C rounded to its type in between. The library's own choice of algorithm is
// asked for once a shape: it doesn't depend on measurements, and split sums go through the
// workspace in fp32, so equal calls give equal bits.
#include "kernels/cuda/gemm_lt.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstrict-prototypes" // theirs
#include <cublasLt.h>
#pragma GCC diagnostic pop
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum { CACHE_SLOTS = 1024 };

// All that the choice of an algorithm depends on. Compared by bytes: padding is zero.
struct lt_shape {
    int64_t m, n, k, ld_left, ld_right, ld_in, ld_out; // of the library's A, B, C and D
    int32_t type, out_type, epilogue;
    int32_t align_left, align_right, align_in, align_out, align_bias, align_aux;
    int32_t left_terms, right_terms; // lines are of terms
    int32_t adds;                    // beta is 1
};

struct lt_answer {
    struct lt_shape shape;
    cublasLtMatmulAlgo_t algo;
    bool asked, can;
};

struct tsr_cuda_lt {
    cublasLtHandle_t handle;
    void *workspace;
    struct lt_answer answers[CACHE_SLOTS]; // by hash of the shape; a newcomer takes the place
};

// One product: out (m, n) = in (m, n) + A B, terms of k that lie evenly.
struct lt_product {
    struct lt_shape shape;
    const void *left, *right, *in, *bias;
    void *out, *aux;
};

// What the library needs to be told about one.
struct lt_call {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t left, right, in, out;
};

static int failed(const char *what, cublasStatus_t rc) {
    return tsr_fail(TSR_EIO, "device: cuBLASLt: %s: %s", what, cublasLtGetStatusString(rc));
}

int tsr_cuda_lt_open(struct tsr_cuda_lt **out) {
    struct tsr_cuda_lt *lt = calloc(1, sizeof *lt);
    if (!lt)
        return tsr_fail(TSR_ENOMEM, "no memory for the library of products");
    cublasStatus_t rc = cublasLtCreate(&lt->handle);
    if (rc != CUBLAS_STATUS_SUCCESS) {
        free(lt);
        return failed("open", rc);
    }
    if (cudaMalloc(&lt->workspace, TSR_CUDA_LT_WORKSPACE) != cudaSuccess) {
        (void)cudaGetLastError(); // the sentence below says it; later calls mustn't find it
        (void)cublasLtDestroy(lt->handle);
        free(lt);
        return tsr_fail(TSR_ENOMEM, "device: no memory for %d MiB of workspace of products",
                        TSR_CUDA_LT_WORKSPACE >> 20);
    }
    *out = lt;
    return 0;
}

void tsr_cuda_lt_close(struct tsr_cuda_lt *lt) {
    if (!lt)
        return;
    (void)cudaFree(lt->workspace);
    (void)cublasLtDestroy(lt->handle);
    free(lt);
}

static cudaDataType_t type_of(enum tsr_dtype dtype) {
    return dtype == TSR_DT_F32 ? CUDA_R_32F : dtype == TSR_DT_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

// The largest power of two, up to 256, that divides an address.
static int32_t alignment(const void *p) {
    uintptr_t low = (uintptr_t)p & -(uintptr_t)p;
    return low == 0 || low > 256 ? 256 : (int32_t)low;
}

// Distance between an operand's lines of `length` elements; 0 when the library can't have it.
static int64_t line_distance(ptrdiff_t ld, int64_t length, int64_t lines) {
    if (lines == 1 && ld < length)
        return length;
    return ld < length ? 0 : ld;
}

// The next run of terms from segment *s on: those that go on where the ones before end are joined.
static bool next_run(const struct tsr_gemm *g, size_t elem, int *s, struct tsr_gemm_seg *run,
                     int64_t *k) {
    while (*s < g->n_segs && g->segs[*s].k == 0)
        (*s)++;
    if (*s == g->n_segs)
        return false;
    *run = g->segs[*s];
    *k = run->k;
    for ((*s)++; *s < g->n_segs; (*s)++) {
        const struct tsr_gemm_seg *next = &g->segs[*s];
        if (next->k == 0)
            continue;
        const char *a = (const char *)run->a + *k * run->a_p * (ptrdiff_t)elem;
        const char *b = (const char *)run->b + *k * run->b_p * (ptrdiff_t)elem;
        if (next->a != (const void *)a || next->b != (const void *)b || next->a_i != run->a_i ||
            next->a_p != run->a_p || next->b_p != run->b_p || next->b_j != run->b_j)
            break;
        *k += next->k;
    }
    return true;
}

static void set_epilogue(struct lt_product *p, const struct tsr_gemm *g) {
    static const cublasLtEpilogue_t of[2][2][2] = {
        // [activation][pre][bias]
        {{CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS}},
        {{CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS},
         {CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS}},
    };
    p->shape.epilogue = of[g->has_act][g->pre != NULL][g->bias != NULL];
    p->bias = g->bias;
    p->aux = g->pre;
    p->shape.align_bias = g->bias ? alignment(g->bias) : 0;
    p->shape.align_aux = g->pre ? alignment(g->pre) : 0;
}

// The product of one run. False when the library can't have its operands.
static bool make_product(struct lt_product *p, enum tsr_dtype dtype, const struct tsr_gemm *g,
                         const struct tsr_gemm_seg *run, int64_t k, bool first, bool last) {
    memset(p, 0, sizeof *p);
    struct lt_shape *h = &p->shape;
    bool residual = first && g->residual != NULL;
    bool a_terms = run->a_p == 1 && (run->a_i != 1 || g->m == 1);
    bool b_terms = run->b_p == 1 && (run->b_j != 1 || g->n == 1);
    h->m = g->n;
    h->n = g->m;
    h->k = k;
    h->left_terms = b_terms;
    h->right_terms = a_terms;
    h->ld_left = b_terms ? line_distance(run->b_j, k, g->n) : line_distance(run->b_p, g->n, k);
    h->ld_right = a_terms ? line_distance(run->a_i, k, g->m) : line_distance(run->a_p, g->m, k);
    h->ld_out = line_distance(g->ldc, g->n, g->m);
    h->ld_in = residual ? line_distance(g->ldr, g->n, g->m) : h->ld_out;
    h->adds = !first || residual || g->mode != TSR_GEMM_STORE;
    h->type = (int32_t)type_of(dtype);
    h->out_type = (int32_t)(g->c_f32 ? CUDA_R_32F : type_of(dtype));
    p->left = run->b;
    p->right = run->a;
    p->in = residual ? g->residual : g->c;
    p->out = g->c;
    h->align_left = alignment(p->left);
    h->align_right = alignment(p->right);
    h->align_in = alignment(p->in);
    h->align_out = alignment(p->out);
    h->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    if (last)
        set_epilogue(p, g);
    return h->ld_left > 0 && h->ld_right > 0 && h->ld_out > 0 && h->ld_in > 0;
}

static cublasStatus_t set(cublasLtMatmulDescOpaque_t *op, cublasLtMatmulDescAttributes_t what,
                          const void *value, size_t n_bytes) {
    return cublasLtMatmulDescSetAttribute(op, what, value, n_bytes);
}

static cublasStatus_t describe(struct lt_call *c, const struct lt_product *p) {
    const struct lt_shape *h = &p->shape;
    cudaDataType_t type = (cudaDataType_t)h->type, out_type = (cudaDataType_t)h->out_type;
    cublasOperation_t left = h->left_terms ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t right = h->right_terms ? CUBLAS_OP_N : CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)h->epilogue;
    uint64_t m = (uint64_t)h->m, n = (uint64_t)h->n, k = (uint64_t)h->k;
    cublasStatus_t rc = cublasLtMatmulDescInit(&c->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
#define DO(call)                                                                                   \
    if (rc == CUBLAS_STATUS_SUCCESS)                                                               \
    rc = (call)
    DO(set(&c->op, CUBLASLT_MATMUL_DESC_TRANSA, &left, sizeof left));
    DO(set(&c->op, CUBLASLT_MATMUL_DESC_TRANSB, &right, sizeof right));
    DO(set(&c->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (p->bias)
        DO(set(&c->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias));
    if (p->aux) {
        DO(set(&c->op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &p->aux, sizeof p->aux));
        DO(set(&c->op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &h->ld_out, sizeof h->ld_out));
    }
    bool lt = h->left_terms, rt = h->right_terms;
    DO(cublasLtMatrixLayoutInit(&c->left, type, lt ? k : m, lt ? m : k, h->ld_left));
    DO(cublasLtMatrixLayoutInit(&c->right, type, rt ? k : n, rt ? n : k, h->ld_right));
    DO(cublasLtMatrixLayoutInit(&c->in, out_type, m, n, h->ld_in));
    DO(cublasLtMatrixLayoutInit(&c->out, out_type, m, n, h->ld_out));
#undef DO
    return rc;
}

// Asks for the library's first choice.
static cublasStatus_t ask(struct tsr_cuda_lt *lt, struct lt_answer *answer, struct lt_call *c) {
    const struct lt_shape *h = &answer->shape;
    const struct {
        cublasLtMatmulPreferenceAttributes_t what;
        uint32_t value;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)h->align_left},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)h->align_right},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)h->align_in},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)h->align_out},
    };
    uint64_t workspace = TSR_CUDA_LT_WORKSPACE;
    cublasLtMatmulPreferenceOpaque_t pref;
    cublasStatus_t rc = cublasLtMatmulPreferenceInit(&pref);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatmulPreferenceSetAttribute(&pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                  &workspace, sizeof workspace);
    for (size_t i = 0; rc == CUBLAS_STATUS_SUCCESS && i < sizeof wishes / sizeof *wishes; i++)
        rc = cublasLtMatmulPreferenceSetAttribute(&pref, wishes[i].what, &wishes[i].value,
                                                  sizeof wishes[i].value);
    if (rc != CUBLAS_STATUS_SUCCESS)
        return rc;
    cublasLtMatmulHeuristicResult_t found;
    int n_found = 0;
    rc = cublasLtMatmulAlgoGetHeuristic(lt->handle, &c->op, &c->left, &c->right, &c->in, &c->out,
                                        &pref, 1, &found, &n_found);
    answer->asked = rc == CUBLAS_STATUS_SUCCESS || rc == CUBLAS_STATUS_NOT_SUPPORTED ||
                    rc == CUBLAS_STATUS_INVALID_VALUE; // it says so of some leading dimensions
    answer->can = rc == CUBLAS_STATUS_SUCCESS && n_found > 0 && found.state == rc;
    if (answer->can)
        answer->algo = found.algo;
    return answer->asked ? CUBLAS_STATUS_SUCCESS : rc;
}

// The algorithm for a product: 0, 1 when there is none, or TSR_EIO.
static int find(struct tsr_cuda_lt *lt, const struct lt_product *p, cublasLtMatmulAlgo_t *algo) {
    uint64_t hash = 0xcbf29ce484222325u; // FNV-1a
    for (size_t i = 0; i < sizeof p->shape; i++)
        hash = (hash ^ ((const unsigned char *)&p->shape)[i]) * 0x100000001b3u;
    struct lt_answer *answer = &lt->answers[hash % CACHE_SLOTS];
    if (!answer->asked || memcmp(&answer->shape, &p->shape, sizeof p->shape) != 0) {
        struct lt_call c;
        memset(answer, 0, sizeof *answer);
        answer->shape = p->shape;
        cublasStatus_t rc = describe(&c, p);
        if (rc == CUBLAS_STATUS_SUCCESS)
            rc = ask(lt, answer, &c);
        if (rc != CUBLAS_STATUS_SUCCESS)
            return failed("choice of an algorithm", rc);
    }
    *algo = answer->algo;
    return answer->can ? 0 : 1;
}

static int multiply(struct tsr_cuda_lt *lt, void *stream, const struct lt_product *p,
                    const cublasLtMatmulAlgo_t *algo) {
    const float one = 1.0f, beta = p->shape.adds ? 1.0f : 0.0f;
    struct lt_call c;
    cublasStatus_t rc = describe(&c, p);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatmul(lt->handle, &c.op, &one, p->left, &c.left, p->right, &c.right, &beta,
                            p->in, &c.in, p->out, &c.out, algo, lt->workspace,
                            TSR_CUDA_LT_WORKSPACE, (cudaStream_t)stream);
    return rc == CUBLAS_STATUS_SUCCESS ? 0 : failed("product", rc);
}

// The library's GELU is our GELU_TANH; it adds C before the activation and keeps one result.
static bool can_express(enum tsr_dtype dtype, const struct tsr_gemm *g) {
    if (dtype != TSR_DT_F32 && dtype != TSR_DT_BF16 && dtype != TSR_DT_F16)
        return false;
    if (g->has_act && (g->act != TSR_ACT_GELU_TANH || g->residual))
        return false;
    return !g->pre || g->has_act;
}

int tsr_cuda_lt_gemm(struct tsr_cuda_lt *lt, void *stream, enum tsr_dtype dtype,
                     const struct tsr_gemm *g) {
    if (g->m == 0 || g->n == 0)
        return 0;
    if (!can_express(dtype, g))
        return 1;
    size_t elem = dtype == TSR_DT_F32 ? 4 : 2;
    // All runs are looked up before the first is multiplied: C is left alone when one can't be
    // done.
    for (int doing = 0; doing < 2; doing++) {
        struct tsr_gemm_seg run, next;
        int64_t k, next_k = 0;
        int s = 0;
        bool more = next_run(g, elem, &s, &next, &next_k);
        if (!more)
            return 1; // no terms at all
        for (bool first = true; more; first = false) {
            run = next;
            k = next_k;
            more = next_run(g, elem, &s, &next, &next_k);
            struct lt_product p;
            cublasLtMatmulAlgo_t algo;
            if (!make_product(&p, dtype, g, &run, k, first, !more))
                return 1;
            int rc = find(lt, &p, &algo);
            if (rc == 0 && doing)
                rc = multiply(lt, stream, &p, &algo);
            if (rc != 0)
                return rc;
        }
    }
    return 0;
}
