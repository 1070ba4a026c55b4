// Why something was refused, on stderr.
#pragma once

namespace rgfl {

// A line "error: …", printf-like, cut at 512 bytes; allocates nothing and never throws.
__attribute__((format(printf, 1, 2))) void tell_error(const char* format, ...) noexcept;

}  // namespace rgfl
