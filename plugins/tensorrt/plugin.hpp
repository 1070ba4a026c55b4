// RotatedNMS for TensorRT 10 and 11: IPluginV3 around cuda/rotated_nms.hpp.
//
//   inputs    boxes (B, P, 5) float32, scores (B, P, C) float32 or float16
//   outputs   num_detections (B, 1) int32, boxes (B, K, 5) float32, scores (B, K) float32,
//             labels (B, K) int32, with K = max_detections and unused rows zero
//
// The outputs are those of NVIDIA's EfficientNMS. Nothing here needs a symbol of libnvinfer.
#pragma once

#include <NvInferRuntime.h>

#include <array>

#include "cuda/rotated_nms.hpp"

namespace rgfl {

constexpr const char* plugin_name = "RotatedNMS";
constexpr const char* plugin_version = "1";
constexpr const char* plugin_namespace = "";
constexpr int attribute_count = 4;

using Fields = std::array<nvinfer1::PluginField, attribute_count>;

class RotatedNmsPlugin final : public nvinfer1::IPluginV3,
                               public nvinfer1::IPluginV3OneCore,
                               public nvinfer1::IPluginV3OneBuild,
                               public nvinfer1::IPluginV3OneRuntime {
public:
    explicit RotatedNmsPlugin(const RotatedNmsSettings& settings) noexcept;

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    const char* getPluginName() const noexcept override { return plugin_name; }
    const char* getPluginVersion() const noexcept override { return plugin_version; }
    const char* getPluginNamespace() const noexcept override { return plugin_namespace; }

    // IPluginV3OneBuild
    int32_t getNbOutputs() const noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, const nvinfer1::DataType* inputs,
                               int32_t input_count) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                            const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                            nvinfer1::DimsExprs* outputs, int32_t output_count,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                   int32_t input_count, int32_t output_count) noexcept override;
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                            const nvinfer1::DynamicPluginTensorDesc* outputs,
                            int32_t output_count) noexcept override;
    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                            const nvinfer1::DynamicPluginTensorDesc* outputs,
                            int32_t output_count) const noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::PluginTensorDesc* outputs, int32_t output_count) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descriptions,
                    const nvinfer1::PluginTensorDesc* output_descriptions, const void* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

private:
    RotatedNmsSettings settings_;
    Fields fields_;  // point into settings_
    nvinfer1::PluginFieldCollection field_collection_;
};

class RotatedNmsCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    RotatedNmsCreator() noexcept;

    const char* getPluginName() const noexcept override { return plugin_name; }
    const char* getPluginVersion() const noexcept override { return plugin_version; }
    const char* getPluginNamespace() const noexcept override { return plugin_namespace; }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &field_collection_; }

    // nullptr, and a message on stderr, unless every attribute is there, of its type and in its range.
    nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;

private:
    Fields fields_;
    nvinfer1::PluginFieldCollection field_collection_;
};

}  // namespace rgfl
