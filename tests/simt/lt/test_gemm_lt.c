// What cuBLASLt is asked for, against the CPU's product: a library of the same names that
// multiplies by plain loops in columns. Transposes, leading dimensions, joined and separate
// segments, the place of the epilogue, what is refused, and that a shape's algorithm is asked for
// once.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include "kernels/cuda/gemm_lt.c"

// ---- the library: a descriptor's words hold its attributes by number

static int n_asked, n_products;
static bool refuse;

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = (cublasLtHandle_t)&n_asked;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    return handle == (cublasLtHandle_t)&n_asked ? CUBLAS_STATUS_SUCCESS
                                                : CUBLAS_STATUS_INVALID_VALUE;
}
const char *cublasLtGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS ? "success" : "failure";
}
cudaError_t cudaMalloc(void **p, size_t n_bytes) {
    *p = malloc(n_bytes);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *p) {
    free(p);
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t op, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
    memset(op, 0, size);
    assert_int_equal(compute, CUBLAS_COMPUTE_32F);
    assert_int_equal(scale, CUDA_R_32F);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t op,
                                              cublasLtMatmulDescAttributes_t what,
                                              const void *value, size_t n_bytes) {
    assert_true(what < 32 && n_bytes <= 8);
    memcpy(&op->data[what], value, n_bytes);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld) {
    memset(layout, 0, size);
    assert_true((int64_t)rows <= ld);
    layout->data[0] = (uint64_t)type;
    layout->data[1] = rows;
    layout->data[2] = cols;
    layout->data[3] = (uint64_t)ld;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t pref, size_t size) {
    memset(pref, 0, size);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                                    cublasLtMatmulPreferenceAttributes_t what,
                                                    const void *value, size_t n_bytes) {
    assert_non_null(pref);
    uint64_t x = 0;
    memcpy(&x, value, n_bytes);
    // sums in place, in any order, are not wanted
    if (what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
        assert_int_equal(x & CUBLASLT_REDUCTION_SCHEME_INPLACE, 0);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t op,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t pref, int n_wanted,
                                              cublasLtMatmulHeuristicResult_t *found,
                                              int *n_found) {
    assert_true(handle && op && a && b && c && d && pref && n_wanted == 1);
    n_asked++;
    memset(found, 0, sizeof *found);
    *n_found = !refuse;
    return refuse ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

static float at(const void *p, cublasLtMatrixLayout_t l, uint64_t row, uint64_t col) {
    return ((const float *)p)[row + col * l->data[3]];
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t a, const void *B,
                              cublasLtMatrixLayout_t b, const void *beta, const void *C,
                              cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t n_bytes,
                              cudaStream_t stream) {
    assert_true(handle && algo && workspace && n_bytes == TSR_CUDA_LT_WORKSPACE && !stream);
    assert_true(*(const float *)alpha == 1.0f);
    bool ta = (cublasOperation_t)op->data[CUBLASLT_MATMUL_DESC_TRANSA] == CUBLAS_OP_T;
    bool tb = (cublasOperation_t)op->data[CUBLASLT_MATMUL_DESC_TRANSB] == CUBLAS_OP_T;
    uint64_t m = d->data[1], n = d->data[2], k = a->data[ta ? 1 : 2];
    uint32_t epilogue = (uint32_t)op->data[CUBLASLT_MATMUL_DESC_EPILOGUE];
    const float *bias = (const float *)(uintptr_t)op->data[CUBLASLT_MATMUL_DESC_BIAS_POINTER];
    float *aux = (float *)(uintptr_t)op->data[CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER];
    assert_true(a->data[ta ? 2 : 1] == m && b->data[tb ? 1 : 2] == n && b->data[tb ? 2 : 1] == k);
    n_products++;
    for (uint64_t i = 0; i < m; i++)
        for (uint64_t j = 0; j < n; j++) {
            float y = 0.0f;
            for (uint64_t p = 0; p < k; p++)
                y += at(A, a, ta ? p : i, ta ? i : p) * at(B, b, tb ? j : p, tb ? p : j);
            if (*(const float *)beta != 0.0f)
                y += at(C, c, i, j);
            if (epilogue & CUBLASLT_EPILOGUE_BIAS)
                y += bias[i];
            if (epilogue == CUBLASLT_EPILOGUE_GELU_AUX ||
                epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS)
                aux[i + j * op->data[CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD]] = y;
            if (epilogue & CUBLASLT_EPILOGUE_GELU)
                y = 0.5f * y * (1.0f + tanhf(0.79788456f * (y + 0.044715f * y * y * y)));
            ((float *)D)[i + j * d->data[3]] = y;
        }
    return CUBLAS_STATUS_SUCCESS;
}

// ---- the tests

enum { M = 5, N = 7, LDC = 9, K = 6, MAX = 64 };

static struct tsr_ctx cpu;
static struct tsr_cuda_lt *lt;
static float a[3 * MAX], b[3 * MAX], c[2][MAX], pre[2][MAX], bias[N], residual[MAX];

static void fill(float *x, int n) {
    static uint32_t state = 1;
    for (int i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)state * 0x1p-31f;
    }
}

// Three segments of K terms; `apart` of them don't lie beside those before.
static struct tsr_gemm product(struct tsr_gemm_seg *segs, bool a_terms, bool b_terms, bool apart) {
    ptrdiff_t lda = a_terms ? 3 * K + 1 : M + 2, ldb = b_terms ? 3 * K + 2 : N + 1;
    fill(a, 3 * MAX);
    fill(b, 3 * MAX);
    fill(bias, N);
    fill(residual, MAX);
    fill(c[0], MAX);
    memcpy(c[1], c[0], sizeof c[0]);
    memset(pre, 0, sizeof pre);
    for (int s = 0; s < 3; s++) {
        int k = s * K, from = apart ? (2 - s) * K : k;
        segs[s] = (struct tsr_gemm_seg){.a_i = a_terms ? lda : 1,
                                        .a_p = a_terms ? 1 : lda,
                                        .b_p = b_terms ? 1 : ldb,
                                        .b_j = b_terms ? ldb : 1,
                                        .k = K,
                                        .piece = s};
        segs[s].a = a + from * segs[s].a_p;
        segs[s].b = b + from * segs[s].b_p;
    }
    return (struct tsr_gemm){.m = M, .n = N, .n_pieces = 3, .n_segs = 3, .segs = segs, .ldc = LDC};
}

static void check(struct tsr_gemm g, int products) {
    n_products = 0;
    for (int i = 0; i < 2; i++) {
        struct tsr_gemm h = g;
        h.c = c[i];
        h.pre = g.pre ? pre[i] : NULL;
        h.residual = g.residual == c ? c[i] : g.residual; // `c` stands for the product's own
        if (i == 0)
            assert_int_equal(cpu.ops->gemm(&cpu, &h), 0);
        else
            assert_int_equal(tsr_cuda_lt_gemm(lt, NULL, TSR_DT_F32, &h), 0);
    }
    assert_int_equal(n_products, products);
    for (int i = 0; i < MAX; i++) // up to 18 terms below 1, rounded in another order
        assert_true(fabsf(c[0][i] - c[1][i]) < 1e-5f && fabsf(pre[0][i] - pre[1][i]) < 1e-5f);
}

static void test_layouts(void **state) {
    (void)state;
    struct tsr_gemm_seg segs[3];
    for (int way = 0; way < 8; way++) {
        check(product(segs, way & 1, way & 2, way & 4), way & 4 ? 3 : 1);
        struct tsr_gemm g = product(segs, way & 1, way & 2, way & 4);
        g.mode = TSR_GEMM_ADD;
        check(g, way & 4 ? 3 : 1);
        g = product(segs, way & 1, way & 2, way & 4);
        segs[1].k = 0; // nothing of it: the third doesn't lie beside the first
        check(g, 2);
        g = product(segs, way & 1, way & 2, false);
        g.m = 1;
        check(g, 1);
    }
}

static void test_epilogues(void **state) {
    (void)state;
    struct tsr_gemm_seg segs[3];
    for (int apart = 0; apart < 2; apart++)
        for (int way = 0; way < 4; way++) {
            struct tsr_gemm g = product(segs, true, true, apart);
            g.bias = way & 1 ? bias : NULL;
            g.residual = way & 2 ? (const tsr_elem *)residual : (const tsr_elem *)c;
            g.ldr = LDC;
            check(g, apart ? 3 : 1);
            g = product(segs, true, true, apart);
            g.bias = way & 1 ? bias : NULL;
            g.pre = way & 2 ? pre : NULL;
            g.has_act = true;
            g.act = TSR_ACT_GELU_TANH;
            check(g, apart ? 3 : 1);
        }
}

static void test_refusals(void **state) {
    (void)state;
    struct tsr_gemm_seg segs[3];
    struct tsr_gemm g = product(segs, true, true, false), h = g;
    g.c = c[1];
    n_products = 0;
    h = g;
    h.has_act = true; // the library has no GELU by erf
    assert_int_equal(tsr_cuda_lt_gemm(lt, NULL, TSR_DT_F32, &h), 1);
    h.act = TSR_ACT_GELU_TANH; // and adds a residual before the activation
    h.residual = residual;
    h.ldr = LDC;
    assert_int_equal(tsr_cuda_lt_gemm(lt, NULL, TSR_DT_F32, &h), 1);
    h = g;
    h.pre = pre[1]; // two equal results
    assert_int_equal(tsr_cuda_lt_gemm(lt, NULL, TSR_DT_F32, &h), 1);
    h = g;
    h.n_segs = 0;
    assert_int_equal(tsr_cuda_lt_gemm(lt, NULL, TSR_DT_F32, &h), 1);
    h.m = 0;
    assert_int_equal(tsr_cuda_lt_gemm(lt, NULL, TSR_DT_F32, &h), 0);
    refuse = true;
    h = g;
    h.m = 3; // a new shape
    assert_int_equal(tsr_cuda_lt_gemm(lt, NULL, TSR_DT_F32, &h), 1);
    refuse = false; // the answer is remembered
    assert_int_equal(tsr_cuda_lt_gemm(lt, NULL, TSR_DT_F32, &h), 1);
    assert_int_equal(n_products, 0);
}

static void test_asked_once(void **state) {
    (void)state;
    struct tsr_gemm_seg segs[3];
    struct tsr_gemm g = product(segs, true, false, false);
    g.c = c[1];
    g.n = 4;
    n_asked = n_products = 0;
    for (int i = 0; i < 3; i++)
        assert_int_equal(tsr_cuda_lt_gemm(lt, NULL, TSR_DT_F32, &g), 0);
    assert_int_equal(n_asked, 1);
    assert_int_equal(n_products, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_epilogues),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_asked_once),
    };
    if (tsr_cpu_open(&cpu, NULL, 1) != 0 || tsr_cuda_lt_open(&lt) != 0)
        return 1;
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    tsr_cuda_lt_close(lt);
    cpu.ops->close(&cpu);
    return n_failed;
}
