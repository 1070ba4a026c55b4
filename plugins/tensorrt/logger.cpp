#include "tensorrt/logger.hpp"

#include <stdarg.h>
#include <stdio.h>

#include <atomic>

namespace rgfl {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* find_logger() noexcept {
    nvinfer1::ILoggerFinder* finder = logger_finder.load();
    try {
        return finder == nullptr ? nullptr : finder->findLogger();
    } catch (...) {
        return nullptr;
    }
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder.store(finder); }

void log(nvinfer1::ILogger::Severity severity, const char* format, ...) noexcept {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (nvinfer1::ILogger* logger = find_logger()) {
        logger->log(severity, message);
    } else {
        fprintf(stderr, "%s\n", message);
    }
}

}  // namespace rgfl
