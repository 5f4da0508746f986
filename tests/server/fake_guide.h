/* fake_guide.h - a guide that remembers what it was asked to compile, so that the request side is tested by itself. */
#ifndef FAKE_GUIDE_H
#define FAKE_GUIDE_H

#include "text/guide.h"

typedef struct fake_guide {
    char kind[16]; /* "schema", "object", "regex", "choice", "grammar" */
    char source[8192];
    int num_open;   /* programs not yet closed */
    mf_status fail; /* what compiling answers, when not MF_OK */
} fake_guide;

extern fake_guide fake_guide_last;
const mf_guide_vocab *fake_guide_vocab(void);

#endif
