#include "launcher/control/hkdf.h"

#include <string.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include "core/error.h"

int tsr_hmac_sha256(uint8_t out[static TSR_SHA256], const void *key, size_t n_key, const void *data,
                    size_t n_bytes) {
    unsigned n = 0;
    TSR_ASSERT(n_key <= 1 << 20);
    if (!HMAC(EVP_sha256(), key, (int)n_key, data, n_bytes, out, &n)) {
        ERR_clear_error(); // nobody else in this thread asks OpenSSL why
        return tsr_fail(TSR_ENOMEM, "out of memory: an HMAC of %zu bytes", n_bytes);
    }
    TSR_ASSERT(n == TSR_SHA256);
    return 0;
}

// RFC 5869, 2.3: T(i) = HMAC(PRK, T(i - 1) | info | i), out = T(1) | T(2) | ...
static int expand(uint8_t *out, size_t n_out, const uint8_t prk[static TSR_SHA256],
                  const void *info, size_t n_info) {
    uint8_t in[TSR_SHA256 + 256 + 1], t[TSR_SHA256];
    size_t n_t = 0;
    TSR_ASSERT(n_info <= 256 && n_out <= 255 * TSR_SHA256);
    int rc = 0;
    for (uint8_t i = 1; n_out > 0 && rc == 0; i++) {
        memcpy(in, t, n_t);
        if (n_info > 0)
            memcpy(in + n_t, info, n_info);
        in[n_t + n_info] = i;
        rc = tsr_hmac_sha256(t, prk, TSR_SHA256, in, n_t + n_info + 1);
        n_t = TSR_SHA256;
        const size_t n = n_out < n_t ? n_out : n_t;
        if (rc == 0)
            memcpy(out, t, n);
        out += n;
        n_out -= n;
    }
    OPENSSL_cleanse(in, sizeof in);
    OPENSSL_cleanse(t, sizeof t);
    return rc;
}

int tsr_hkdf_sha256(uint8_t *out, size_t n_out, const void *secret, size_t n_secret,
                    const void *salt, size_t n_salt, const void *info, size_t n_info) {
    static const uint8_t no_salt[TSR_SHA256];
    uint8_t prk[TSR_SHA256];
    if (n_salt == 0) {
        salt = no_salt;
        n_salt = sizeof no_salt;
    }
    int rc = tsr_hmac_sha256(prk, salt, n_salt, secret, n_secret);
    if (rc == 0)
        rc = expand(out, n_out, prk, info, n_info);
    OPENSSL_cleanse(prk, sizeof prk);
    return rc;
}
