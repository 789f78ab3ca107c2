#include "core/decimal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tsr_shortest_decimal(char out[static TSR_DECIMAL_MAX], double v) {
    int digits = 0;
    do // 17 digits always tell doubles apart
        snprintf(out, TSR_DECIMAL_MAX, "%.*e", digits, v);
    while (strtod(out, NULL) != v && digits++ < 16);
    int exponent = atoi(strchr(out, 'e') + 1);
    if (exponent >= -4 && exponent < 16)
        snprintf(out, TSR_DECIMAL_MAX, "%.*f", digits > exponent ? digits - exponent : 0, v);
}
