/* engine.h - the engine's inside for those below the public interface: the glue to model/, tests, and the program's info
 * printing. */
#ifndef MF_ENGINE_ENGINE_H
#define MF_ENGINE_ENGINE_H

#include "engine/engine_model.h"
#include "engine/scheduler.h"
#include "moefuse_engine.h"

/* Opens an engine over any model with a KV store of num_kv_blocks blocks.  Of `options` the model's own fields (directory,
 * device, loading) are not read.  On success the engine owns *model and closes it. */
mf_status mf_engine_open_model(const mf_engine_model *model, const mf_engine_options *options, int32_t num_kv_blocks,
                               mf_engine **engine, mf_error *err);

enum { MF_MAX_STOP_IDS = 16 }; /* of the options */

/* Ranges of the options, before anything is opened. */
mf_status mf_engine_options_check(const mf_engine_options *options, mf_error *err);

/* The model below, when mf_engine_open made the engine; else NULL.  For printing plan and config. */
const mf_model *mf_engine_get_model(const mf_engine *engine);
void mf_engine_set_model(mf_engine *engine, const mf_model *model);

/* beat is called on the stepping thread, several times within a long step: at least twice a layer of the model. */
void mf_engine_set_beat(mf_engine *engine, void (*beat)(void *context), void *context);

int32_t mf_engine_num_kv_blocks(const mf_engine *engine);
int32_t mf_engine_max_num_seqs(const mf_engine *engine); /* fewer than asked for when their states would not fit */

/* The invariants of scheduler and KV cache, now. */
mf_status mf_engine_check(mf_engine *engine, mf_error *err);
mf_scheduler *mf_engine_get_scheduler(mf_engine *engine); /* tests break things through it */

#endif
