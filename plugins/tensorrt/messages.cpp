#include "tensorrt/messages.hpp"

#include <stdarg.h>
#include <stdio.h>

namespace rgfl {

void tell_error(const char* format, ...) noexcept {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    fprintf(stderr, "error: %s\n", message);
}

}  // namespace rgfl
