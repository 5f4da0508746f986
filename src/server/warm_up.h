/* warm_up.h - one prefill and one decode before the first request: pages are touched, threads are awake. */
#ifndef MF_SERVER_WARM_UP_H
#define MF_SERVER_WARM_UP_H

#include "moefuse_engine.h"

mf_status mf_warm_up(mf_engine *engine, int32_t vocab_size, mf_error *err);

#endif
