#ifndef TSR_CORE_DECIMAL_H
#define TSR_CORE_DECIMAL_H

enum { TSR_DECIMAL_MAX = 40 };

// The shortest decimal that reads back as the same finite double: "0.0003", "1e-05", "500000".
// Small whole numbers have no point.
void tsr_shortest_decimal(char out[static TSR_DECIMAL_MAX], double v);

#endif
