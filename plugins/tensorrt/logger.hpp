// Messages to the logger of the TensorRT that loaded this library, or to stderr before it gave one.
#pragma once

#include <NvInferRuntime.h>

namespace rgfl {

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// printf to the log, cut at 512 bytes; allocates nothing and never throws.
__attribute__((format(printf, 2, 3))) void log(nvinfer1::ILogger::Severity severity, const char* format,
                                               ...) noexcept;

}  // namespace rgfl
