// What TensorRT looks for in a plugin library (IPluginRegistry::loadLibrary).
#include "tensorrt/logger.hpp"
#include "tensorrt/plugin.hpp"

#define RGFL_EXPORT extern "C" __attribute__((visibility("default")))

RGFL_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { rgfl::set_logger_finder(finder); }

RGFL_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static rgfl::RotatedNmsCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}
