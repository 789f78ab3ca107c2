// HKDF and HMAC with SHA-256 (RFC 5869, RFC 2104), over OpenSSL's libcrypto.
#ifndef TSR_LAUNCHER_CONTROL_HKDF_H
#define TSR_LAUNCHER_CONTROL_HKDF_H

#include <stddef.h>
#include <stdint.h>

enum { TSR_SHA256 = 32 };

// 0 or TSR_ENOMEM.
int tsr_hmac_sha256(uint8_t out[static TSR_SHA256], const void *key, size_t n_key, const void *data,
                    size_t n_bytes);

// out = first n_out <= 255 * 32 bytes of HKDF-Expand(HKDF-Extract(salt, secret), info). An empty
// salt is 32 zero bytes, as the RFC has it. 0 or TSR_ENOMEM.
int tsr_hkdf_sha256(uint8_t *out, size_t n_out, const void *secret, size_t n_secret,
                    const void *salt, size_t n_salt, const void *info, size_t n_info);

#endif
