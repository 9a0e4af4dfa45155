#!/bin/sh
# Sampler and trainer compute at the same time, and OpenMP threads spin while they wait: each gets
# half of the cores, unless OMP_NUM_THREADS says otherwise.
: "${OMP_NUM_THREADS:=$((($(nproc) + 1) / 2))}"
export OMP_NUM_THREADS
exec "$@"
