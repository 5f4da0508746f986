/* nfc.h - canonical composition (NFC) as Hugging Face `tokenizers` does it, which knows Unicode 9 only. */
#ifndef MF_TEXT_NFC_H
#define MF_TEXT_NFC_H

#include <stdbool.h>

#include "base/buffer.h"

/* Appends the normal form of valid UTF-8 text to *out.  Linear in size, also for long runs of combining marks. */
mf_status mf_nfc(const char *text, size_t size, mf_buffer *out);

/* True when the text is surely in normal form already; false when it has to be looked at. */
bool mf_nfc_is_plain(const char *text, size_t size);

#endif
