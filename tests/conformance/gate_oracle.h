/* gate_oracle.h - the gate a second time, in double and from the definition, to hold "ref" against. */
#ifndef MF_TESTS_GATE_ORACLE_H
#define MF_TESTS_GATE_ORACLE_H

#include "gate_case.h"

/* Checks choice and weights of a case without maps, ranks, window, padding or ORDER_ID.  Returns the number of rows whose
 * choice could not be judged because f32 and f64 may order groups differently. */
int64_t gate_oracle_check(const gate_case *c, const gate_outputs *o, const char *label);

/* The same problem with what happens after the weights taken away: maps, ranks, window, order, packing, padding. */
gate_spec gate_spec_without_events(const gate_spec *s);

/* Checks ids, weights, packed, histogram, load, identity and counters of `o` against `base`, the outputs of the problem
 * without events, by applying the events here. */
void gate_events_check(const gate_case *c, const gate_outputs *base, const gate_outputs *o, const char *label);

/* An input as the gate sees it: infinities clamped, subnormals and -0 are +0, NaN stays. */
double gate_canonical(double v);

#endif
