// What TensorRT looks for in a plugin library (IPluginRegistry::loadLibrary), and what registers one that is only
// opened, as Triton and DeepStream do: then it needs libnvinfer, and serves the version of its headers alone.
#include "tensorrt/plugin.hpp"

#define RGFL_EXPORT extern "C" __attribute__((visibility("default")))

// ILoggerFinder's table of functions begins with findLogger in TensorRT 10, with another function in 11. One file
// for both cannot use it: messages go to stderr.
RGFL_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

RGFL_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static rgfl::RotatedNmsCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

#ifdef RGFL_REGISTERS_ITSELF
namespace rgfl {
REGISTER_TENSORRT_PLUGIN(RotatedNmsCreator);
}
#endif
