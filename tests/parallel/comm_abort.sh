#!/bin/sh
# One rank fails: its line stands on standard error, the code is mpirun's, nobody is left waiting.
# usage: comm_abort.sh TEST_COMM
text=$(mpirun --oversubscribe --bind-to none -np 3 "$1" abort 2>&1 >/dev/null)
code=$?
if [ $code -ne 4 ]; then
    echo "expected exit code 4, found $code: $text"
    exit 1
fi
echo "$text" | grep -q "^tessera: error: rank 2 (host .*): test of abort$" && exit 0
echo "expected one line with rank and host, found: $text"
exit 1
