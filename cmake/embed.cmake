# Makes a C file that holds another file's bytes: cmake -DIN=file -DOUT=file.c -DNAME=symbol -P embed.cmake
#
# The file gets a NUL behind it, which NAME_size does not count.
file(READ "${IN}" hex HEX)
string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," hex "${hex}")
file(SIZE "${IN}" size)
get_filename_component(name "${IN}" NAME)
file(WRITE "${OUT}" "/* ${name}: made by cmake/embed.cmake */
#include <stddef.h>

extern const unsigned char ${NAME}[];
extern const size_t ${NAME}_size;
const unsigned char ${NAME}[] = {
${hex}0x00
};
const size_t ${NAME}_size = ${size};
")
