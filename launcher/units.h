// Quantities in words, for people.
#ifndef TSR_LAUNCHER_UNITS_H
#define TSR_LAUNCHER_UNITS_H

// "1.50 GiB", "17 B".
const char *tsr_bytes_text(char out[static 32], double n_bytes);

#endif
