#include "tensorrt/plugin.hpp"

#include <string.h>

#include <new>

#include "tensorrt/messages.hpp"

namespace rgfl {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr int32_t ok = 0, failed = -1;
constexpr int input_count_expected = 2, output_count_expected = 4;

// ---- attributes ---------------------------------------------------------------------------------------

template <class T>
struct FieldType;
template <>
struct FieldType<float> {
    static constexpr PluginFieldType type = PluginFieldType::kFLOAT32;
    static constexpr const char* name = "float32";
};
template <>
struct FieldType<int32_t> {
    static constexpr PluginFieldType type = PluginFieldType::kINT32;
    static constexpr const char* name = "int32";
};

template <class T>
PluginField make_field(const char* name, const T* value) noexcept {
    return PluginField(name, value, FieldType<T>::type, 1);
}

// Fields that carry the settings, or only names and types where there are none.
Fields fields_of(const RotatedNmsSettings* settings) noexcept {
#define RGFL_ATTRIBUTE(type, name, least, greatest) \
    make_field<type>(#name, settings == nullptr ? nullptr : &settings->name),
    return {
#include "tensorrt/rotated_nms_attributes.inc"
    };
#undef RGFL_ATTRIBUTE
}

const PluginField* find_field(const PluginFieldCollection& fields, const char* name) noexcept {
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        if (fields.fields[i].name != nullptr && strcmp(fields.fields[i].name, name) == 0) {
            return &fields.fields[i];
        }
    }
    return nullptr;
}

template <class T>
bool read_attribute(const PluginFieldCollection& fields, const char* name, T least, T greatest, T& value) noexcept {
    const PluginField* field = find_field(fields, name);
    if (field == nullptr || field->data == nullptr) {
        tell_error("%s: attribute %s is missing; export the model with all attributes", plugin_name, name);
        return false;
    }
    if (field->type != FieldType<T>::type || field->length != 1) {
        tell_error("%s: attribute %s must be one %s value, got %d of PluginFieldType %d", plugin_name, name,
                   FieldType<T>::name, static_cast<int>(field->length), static_cast<int>(field->type));
        return false;
    }
    memcpy(&value, field->data, sizeof value);
    if (!(value >= least && value <= greatest)) {  // in this form NaN fails too
        tell_error("%s: attribute %s must lie in [%g, %g], got %g", plugin_name, name, static_cast<double>(least),
                   static_cast<double>(greatest), static_cast<double>(value));
        return false;
    }
    return true;
}

// Reads all, so that every fault is named and not only the first.
bool read_settings(const PluginFieldCollection& fields, RotatedNmsSettings& settings) noexcept {
    bool good = true;
#define RGFL_ATTRIBUTE(type, name, least, greatest) \
    good &= read_attribute<type>(fields, #name, least, greatest, settings.name);
#include "tensorrt/rotated_nms_attributes.inc"
#undef RGFL_ATTRIBUTE
    return good;
}

// ---- shapes -------------------------------------------------------------------------------------------

// False, with a message, unless boxes are (B, P, 5) and scores (B, P, C). −1 stands for any size.
bool check_shapes(const Dims& boxes, const Dims& scores) noexcept {
    const auto agree = [](int64_t a, int64_t b) { return a == b || a < 0 || b < 0; };
    if (boxes.nbDims != 3 || scores.nbDims != 3) {
        tell_error("%s: expected boxes (B, P, 5) and scores (B, P, C), got %d and %d dimensions", plugin_name,
                   static_cast<int>(boxes.nbDims), static_cast<int>(scores.nbDims));
        return false;
    }
    if (!agree(boxes.d[2], 5) || !agree(boxes.d[0], scores.d[0]) || !agree(boxes.d[1], scores.d[1])) {
        tell_error("%s: expected boxes (B, P, 5) and scores (B, P, C), got (%lld, %lld, %lld) and (%lld, %lld, %lld)",
                   plugin_name, static_cast<long long>(boxes.d[0]), static_cast<long long>(boxes.d[1]),
                   static_cast<long long>(boxes.d[2]), static_cast<long long>(scores.d[0]),
                   static_cast<long long>(scores.d[1]), static_cast<long long>(scores.d[2]));
        return false;
    }
    return true;
}

RotatedNmsShape shape_of(const Dims& scores) noexcept {
    return {static_cast<int32_t>(scores.d[0]), static_cast<int32_t>(scores.d[1]), static_cast<int32_t>(scores.d[2])};
}

bool check_counts(int32_t inputs, int32_t outputs) noexcept {
    if (inputs != input_count_expected || outputs != output_count_expected) {
        tell_error("%s: expected %d inputs (boxes, scores) and %d outputs, got %d and %d", plugin_name,
                   input_count_expected, output_count_expected, static_cast<int>(inputs), static_cast<int>(outputs));
        return false;
    }
    return true;
}

}  // namespace

// ---- plugin -------------------------------------------------------------------------------------------

RotatedNmsPlugin::RotatedNmsPlugin(const RotatedNmsSettings& settings) noexcept
    : settings_(settings), fields_(fields_of(&settings_)), field_collection_{attribute_count, fields_.data()} {}

nvinfer1::IPluginCapability* RotatedNmsPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* RotatedNmsPlugin::clone() noexcept { return new (std::nothrow) RotatedNmsPlugin(settings_); }

int32_t RotatedNmsPlugin::getNbOutputs() const noexcept { return output_count_expected; }

int32_t RotatedNmsPlugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType*,
                                             int32_t input_count) const noexcept {
    if (!check_counts(input_count, output_count)) {
        return failed;
    }
    outputs[0] = DataType::kINT32;
    outputs[1] = DataType::kFLOAT;
    outputs[2] = DataType::kFLOAT;
    outputs[3] = DataType::kINT32;
    return ok;
}

int32_t RotatedNmsPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                                          const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                                          int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept {
    if (!check_counts(input_count, output_count)) {
        return failed;
    }
    Dims known[input_count_expected];
    for (int i = 0; i < input_count_expected; ++i) {
        known[i].nbDims = inputs[i].nbDims;
        for (int d = 0; d < inputs[i].nbDims; ++d) {
            known[i].d[d] = inputs[i].d[d]->isConstant() ? inputs[i].d[d]->getConstantValue() : -1;
        }
    }
    if (!check_shapes(known[0], known[1])) {
        return failed;
    }
    const nvinfer1::IDimensionExpr* batch = inputs[0].d[0];
    const nvinfer1::IDimensionExpr* rows = builder.constant(settings_.max_detections);
    const auto set = [](nvinfer1::DimsExprs& shape, auto... sizes) {
        const nvinfer1::IDimensionExpr* list[] = {sizes...};
        shape.nbDims = sizeof...(sizes);
        for (int d = 0; d < shape.nbDims; ++d) {
            shape.d[d] = list[d];
        }
    };
    set(outputs[0], batch, builder.constant(1));
    set(outputs[1], batch, rows, builder.constant(5));
    set(outputs[2], batch, rows);
    set(outputs[3], batch, rows);
    return ok;
}

bool RotatedNmsPlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                                 int32_t input_count, int32_t output_count) noexcept {
    if (!check_counts(input_count, output_count)) {
        return false;
    }
    const PluginTensorDesc& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
        return false;
    }
    switch (position) {
        case 1:  // scores
            return tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF;
        case 2:  // num_detections
        case 5:  // labels
            return tensor.type == DataType::kINT32;
        default:
            return tensor.type == DataType::kFLOAT;
    }
}

int32_t RotatedNmsPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                          const DynamicPluginTensorDesc*, int32_t output_count) noexcept {
    return check_counts(input_count, output_count) && check_shapes(inputs[0].desc.dims, inputs[1].desc.dims) ? ok
                                                                                                              : failed;
}

size_t RotatedNmsPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                                          const DynamicPluginTensorDesc*, int32_t) const noexcept {
    return rotated_nms_workspace_size(shape_of(inputs[1].max));
}

int32_t RotatedNmsPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*,
                                        int32_t output_count) noexcept {
    return check_counts(input_count, output_count) && check_shapes(inputs[0].dims, inputs[1].dims) ? ok : failed;
}

int32_t RotatedNmsPlugin::enqueue(const PluginTensorDesc* input_descriptions, const PluginTensorDesc*,
                                  const void* const* inputs, void* const* outputs, void* workspace,
                                  cudaStream_t stream) noexcept {
    const PluginTensorDesc& scores = input_descriptions[1];
    const ScoreType score_type = scores.type == DataType::kHALF ? ScoreType::float16 : ScoreType::float32;
    const cudaError_t error = rotated_nms(
        shape_of(scores.dims), settings_, {static_cast<const float*>(inputs[0]), inputs[1], score_type},
        {static_cast<int32_t*>(outputs[0]), static_cast<float*>(outputs[1]), static_cast<float*>(outputs[2]),
         static_cast<int32_t*>(outputs[3]), nullptr},
        workspace, stream);
    if (error != cudaSuccess) {
        tell_error("%s: %s", plugin_name, cudaGetErrorString(error));
        return failed;
    }
    return ok;
}

nvinfer1::IPluginV3* RotatedNmsPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const PluginFieldCollection* RotatedNmsPlugin::getFieldsToSerialize() noexcept { return &field_collection_; }

// ---- creator ------------------------------------------------------------------------------------------

RotatedNmsCreator::RotatedNmsCreator() noexcept
    : fields_(fields_of(nullptr)), field_collection_{attribute_count, fields_.data()} {}

nvinfer1::IPluginV3* RotatedNmsCreator::createPlugin(const char*, const PluginFieldCollection* fields,
                                                     nvinfer1::TensorRTPhase) noexcept {
    RotatedNmsSettings settings{};
    const PluginFieldCollection none{};
    if (!read_settings(fields == nullptr ? none : *fields, settings)) {
        return nullptr;
    }
    return new (std::nothrow) RotatedNmsPlugin(settings);
}

}  // namespace rgfl
