// Drives the plugin object as TensorRT would, without TensorRT: harness LIBRARY CHECK.
//
// Compiled against the emulated CUDA runtime it also runs `enqueue` on the CPU; compiled with a CUDA
// toolkit it runs on the GPU.
#include <NvInferRuntime.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

FILE* report = stderr;  // of the checks themselves

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(report, "%s:%d: %s\n", __FILE__, __LINE__, #condition);    \
            fflush(report);                                                    \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

namespace {

// ---- what TensorRT brings -----------------------------------------------------------------------------

// What the plugin writes to stderr, which is a file from `begin` on.
struct Messages {
    FILE* file = nullptr;
    void begin() {
        file = tmpfile();
        report = fdopen(dup(STDERR_FILENO), "w");
        CHECK(file != nullptr && report != nullptr && dup2(fileno(file), STDERR_FILENO) >= 0);
    }
    void clear() { CHECK(ftruncate(fileno(file), 0) == 0 && lseek(fileno(file), 0, SEEK_SET) == 0); }
    bool says(const std::string& part) const {
        char text[4096] = "";
        CHECK(fflush(stderr) == 0 && pread(fileno(file), text, sizeof text - 1, 0) >= 0);
        return std::string(text).find(part) != std::string::npos;
    }
} messages;

// A dimension, constant or known at run time alone (−1).
struct Dimension final : IDimensionExpr {
    struct Value final : apiv::VDimensionExpr {
        int64_t value;
        explicit Value(int64_t v) : value(v) {}
        bool isConstant() const override { return value >= 0; }
        int64_t getConstantValue() const override { return value; }
        bool isSizeTensor() const override { return false; }
    } value;
    explicit Dimension(int64_t v) : value(v) { mImpl = &value; }
};

struct Builder final : IExprBuilder {
    struct Store final : apiv::VExprBuilder {
        std::vector<std::unique_ptr<Dimension>> made;
        const IDimensionExpr* constant(int64_t value) override {
            made.push_back(std::make_unique<Dimension>(value));
            return made.back().get();
        }
        const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) override {
            return nullptr;
        }
        const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
            return nullptr;
        }
    } store;
    Builder() { mImpl = &store; }
    DimsExprs shape(std::vector<int64_t> sizes) {
        DimsExprs shape{};
        shape.nbDims = static_cast<int32_t>(sizes.size());
        for (size_t i = 0; i < sizes.size(); ++i) {
            shape.d[i] = store.constant(sizes[i]);
        }
        return shape;
    }
};

Dims dims(std::vector<int64_t> sizes) {
    Dims dims{};
    dims.nbDims = static_cast<int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), dims.d);
    return dims;
}

PluginTensorDesc tensor(std::vector<int64_t> sizes, DataType type, TensorFormat format = TensorFormat::kLINEAR) {
    return {dims(sizes), type, format, 1.0f};
}

DynamicPluginTensorDesc dynamic_tensor(std::vector<int64_t> sizes, int64_t max_batch, DataType type) {
    DynamicPluginTensorDesc description{};
    description.desc = tensor(sizes, type);
    description.min = description.opt = description.max = description.desc.dims;
    description.max.d[0] = max_batch;
    return description;
}

// ---- the library --------------------------------------------------------------------------------------

struct Attributes {
    float score_threshold = 0.05f, iou_threshold = 0.1f;
    int32_t pre_nms_topk = 0, max_detections = 20;
    std::vector<PluginField> fields() const {
        return {{"score_threshold", &score_threshold, PluginFieldType::kFLOAT32, 1},
                {"iou_threshold", &iou_threshold, PluginFieldType::kFLOAT32, 1},
                {"pre_nms_topk", &pre_nms_topk, PluginFieldType::kINT32, 1},
                {"max_detections", &max_detections, PluginFieldType::kINT32, 1}};
    }
};

void* library = nullptr;
IPluginCreatorV3One* creator = nullptr;

void load(const char* path) {
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    const auto set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
    const auto get = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    CHECK(set_finder != nullptr && get != nullptr);
    set_finder(reinterpret_cast<ILoggerFinder*>(8));  // never looked at: 10 and 11 call it differently
    messages.begin();
    int32_t count = 0;
    IPluginCreatorInterface* const* creators = get(count);
    CHECK(count == 1);
    const InterfaceInfo info = creators[0]->getInterfaceInfo();
    CHECK(strcmp(info.kind, "PLUGIN CREATOR_V3ONE") == 0 && info.major == 1 && info.minor == 0);
    creator = static_cast<IPluginCreatorV3One*>(creators[0]);
}

IPluginV3* create(const std::vector<PluginField>& fields) {
    const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
    return creator->createPlugin("nms", &collection, TensorRTPhase::kBUILD);
}

IPluginV3OneBuild& build_of(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}
IPluginV3OneRuntime& runtime_of(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

bool same_fields(const PluginFieldCollection& found, const std::vector<PluginField>& expected) {
    bool same = found.nbFields == static_cast<int32_t>(expected.size());
    for (int32_t i = 0; same && i < found.nbFields; ++i) {
        same = strcmp(found.fields[i].name, expected[i].name) == 0 && found.fields[i].type == expected[i].type &&
               found.fields[i].length == 1 && memcmp(found.fields[i].data, expected[i].data, 4) == 0;
    }
    return same;
}

// ---- checks -------------------------------------------------------------------------------------------

void identity() {
    std::unique_ptr<IPluginV3> plugin(create(Attributes{}.fields()));
    CHECK(plugin != nullptr);
    auto* core = static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    CHECK(strcmp(core->getPluginName(), "RotatedNMS") == 0 && strcmp(creator->getPluginName(), "RotatedNMS") == 0);
    CHECK(strcmp(core->getPluginVersion(), "1") == 0 && strcmp(creator->getPluginVersion(), "1") == 0);
    CHECK(strcmp(core->getPluginNamespace(), "") == 0 && strcmp(creator->getPluginNamespace(), "") == 0);
    CHECK(strcmp(core->getInterfaceInfo().kind, "PLUGIN_V3ONE_CORE") == 0);
    CHECK(strcmp(build_of(*plugin).getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD") == 0);
    CHECK(strcmp(runtime_of(*plugin).getInterfaceInfo().kind, "PLUGIN_V3ONE_RUNTIME") == 0);
    CHECK(build_of(*plugin).getNbOutputs() == 4);
}

void shapes() {
    std::unique_ptr<IPluginV3> plugin(create(Attributes{}.fields()));
    for (int64_t batch : {int64_t{1}, int64_t{8}, int64_t{-1}}) {
        Builder builder;
        const DimsExprs inputs[] = {builder.shape({batch, 5344, 5}), builder.shape({batch, 5344, 15})};
        DimsExprs outputs[4];
        CHECK(build_of(*plugin).getOutputShapes(inputs, 2, nullptr, 0, outputs, 4, builder) == 0);
        const std::vector<std::vector<int64_t>> expected = {{1}, {20, 5}, {20}, {20}};
        for (int i = 0; i < 4; ++i) {
            CHECK(outputs[i].nbDims == static_cast<int32_t>(expected[i].size()) + 1);
            CHECK(outputs[i].d[0] == inputs[0].d[0]);  // the batch, also where it is not known yet
            for (size_t d = 0; d < expected[i].size(); ++d) {
                CHECK(outputs[i].d[d + 1]->getConstantValue() == expected[i][d]);
            }
        }
    }
}

void impossible_shapes() {
    std::unique_ptr<IPluginV3> plugin(create(Attributes{}.fields()));
    const std::vector<std::vector<int64_t>> bad[] = {
        {{1, 100, 4}, {1, 100, 15}}, {{1, 100, 5}, {1, 99, 15}}, {{2, 100, 5}, {1, 100, 15}}, {{100, 5}, {100, 15}}};
    for (const auto& sizes : bad) {
        Builder builder;
        const DimsExprs inputs[] = {builder.shape(sizes[0]), builder.shape(sizes[1])};
        DimsExprs outputs[4];
        messages.clear();
        CHECK(build_of(*plugin).getOutputShapes(inputs, 2, nullptr, 0, outputs, 4, builder) != 0);
        CHECK(messages.says("error: RotatedNMS: expected boxes (B, P, 5) and scores (B, P, C), got "));
        const PluginTensorDesc tensors[] = {tensor(sizes[0], DataType::kFLOAT), tensor(sizes[1], DataType::kFLOAT)};
        CHECK(runtime_of(*plugin).onShapeChange(tensors, 2, nullptr, 4) != 0);
    }
    Builder builder;
    const DimsExprs inputs[] = {builder.shape({1, 9, 5})};
    DimsExprs outputs[4];
    CHECK(build_of(*plugin).getOutputShapes(inputs, 1, nullptr, 0, outputs, 4, builder) != 0);
    CHECK(messages.says("expected 2 inputs"));
}

void types_and_formats() {
    std::unique_ptr<IPluginV3> plugin(create(Attributes{}.fields()));
    const DataType inputs[] = {DataType::kFLOAT, DataType::kHALF};
    DataType outputs[4];
    CHECK(build_of(*plugin).getOutputDataTypes(outputs, 4, inputs, 2) == 0);
    const DataType expected[] = {DataType::kINT32, DataType::kFLOAT, DataType::kFLOAT, DataType::kINT32};
    CHECK(memcmp(outputs, expected, sizeof expected) == 0);

    const std::vector<DataType> accepted[] = {{DataType::kFLOAT}, {DataType::kFLOAT, DataType::kHALF},
                                              {DataType::kINT32}, {DataType::kFLOAT},
                                              {DataType::kFLOAT}, {DataType::kINT32}};
    for (int position = 0; position < 6; ++position) {
        for (DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32, DataType::kBF16}) {
            for (TensorFormat format : {TensorFormat::kLINEAR, TensorFormat::kHWC8, TensorFormat::kCHW32}) {
                DynamicPluginTensorDesc tensors[6]{};
                tensors[position].desc = tensor({1, 9, 5}, type, format);
                bool good = false;
                for (DataType one : accepted[position]) {
                    good |= one == type && format == TensorFormat::kLINEAR;
                }
                CHECK(build_of(*plugin).supportsFormatCombination(position, tensors, 2, 4) == good);
            }
        }
    }
}

void serialisation() {
    const Attributes attributes{0.25f, 0.5f, 3000, 77};
    std::unique_ptr<IPluginV3> plugin(create(attributes.fields()));
    std::unique_ptr<IPluginV3> clone(plugin->clone());
    std::unique_ptr<IPluginV3> attached(runtime_of(*clone).attachToContext(nullptr));
    plugin.reset();  // a clone stands alone
    clone.reset();
    const PluginFieldCollection* stored = runtime_of(*attached).getFieldsToSerialize();
    CHECK(same_fields(*stored, attributes.fields()));
    std::unique_ptr<IPluginV3> read(creator->createPlugin("nms", stored, TensorRTPhase::kRUNTIME));
    CHECK(read != nullptr && same_fields(*runtime_of(*read).getFieldsToSerialize(), attributes.fields()));
}

void attributes() {
    const PluginFieldCollection* names = creator->getFieldNames();
    const std::vector<PluginField> expected = Attributes{}.fields();
    CHECK(names->nbFields == 4);
    for (int i = 0; i < 4; ++i) {
        CHECK(strcmp(names->fields[i].name, expected[i].name) == 0 && names->fields[i].type == expected[i].type);
    }
    // Each one missing, of another type, out of its range: refused, and the log says which and why.
    for (int i = 0; i < 4; ++i) {
        std::vector<PluginField> fields = Attributes{}.fields();
        fields.erase(fields.begin() + i);
        messages.clear();
        CHECK(create(fields) == nullptr);
        CHECK(messages.says(std::string("error: RotatedNMS: attribute ") + expected[i].name + " is missing"));

        fields = Attributes{}.fields();
        fields[i].type = PluginFieldType::kINT64;
        messages.clear();
        CHECK(create(fields) == nullptr && messages.says(expected[i].name) && messages.says("must be one "));

        fields = Attributes{}.fields();
        fields[i].length = 2;
        CHECK(create(fields) == nullptr);
    }
    Attributes bad[6];
    bad[0].score_threshold = NAN;
    bad[1].iou_threshold = NAN;
    bad[2].iou_threshold = 1.5f;
    bad[3].pre_nms_topk = -1;
    bad[4].max_detections = 0;
    bad[5].score_threshold = -INFINITY;
    for (const Attributes& one : bad) {
        messages.clear();
        CHECK(create(one.fields()) == nullptr && messages.says("must lie in ["));
    }
    CHECK(creator->createPlugin("nms", nullptr, TensorRTPhase::kBUILD) == nullptr);
    std::vector<PluginField> more = Attributes{}.fields();
    more.insert(more.begin(), PluginField{"plugin_version", "1", PluginFieldType::kCHAR, 1});
    std::unique_ptr<IPluginV3> plugin(create(more));
    CHECK(plugin != nullptr);  // the parser may pass what it does not know
}

void workspace() {
    std::unique_ptr<IPluginV3> plugin(create(Attributes{}.fields()));
    const auto size = [&](int64_t max_batch, int64_t points, int64_t classes) {
        const DynamicPluginTensorDesc inputs[] = {dynamic_tensor({-1, points, 5}, max_batch, DataType::kFLOAT),
                                                  dynamic_tensor({-1, points, classes}, max_batch, DataType::kFLOAT)};
        return build_of(*plugin).getWorkspaceSize(inputs, 2, nullptr, 4);
    };
    const size_t one = size(1, 5344, 15);
    CHECK(one >= 5344 * 15 * 16 && one < 5344 * 15 * 20);  // linear: no mask of pairs
    CHECK(size(8, 5344, 15) <= 8 * one && size(8, 5344, 15) > 7 * one);
    CHECK(size(1, 21824, 15) > one);
}

// Two boxes on one object, one apart, one below the threshold; the second image is empty.
void enqueue() {
    const Attributes attributes{0.3f, 0.1f, 0, 3};
    std::unique_ptr<IPluginV3> plugin(create(attributes.fields()));
    const std::vector<float> boxes = {10, 10, 8, 4, 0.1f, 50, 50, 9, 9, 1, 10, 11, 8, 4, 0.1f, 90, 90, 5, 5, 0,
                                      10, 10, 8, 4, 0,    50, 50, 9, 9, 1, 10, 11, 8, 4, 0,    90, 90, 5, 5, 0};
    const std::vector<float> scores = {0.5f, 0, 0, 0.7f, 0.9f, 0, 0.2f, 0.1f, 0, 0, 0, 0, 0, 0, 0, 0};
    const auto device = [](size_t bytes, const void* from = nullptr) {
        void* memory = nullptr;
        CHECK(cudaMalloc(&memory, bytes) == cudaSuccess);
        CHECK(from == nullptr || cudaMemcpy(memory, from, bytes, cudaMemcpyDefault) == cudaSuccess);
        return memory;
    };
    const void* inputs[] = {device(boxes.size() * 4, boxes.data()), device(scores.size() * 4, scores.data())};
    const size_t sizes[] = {2 * 4, 2 * 3 * 5 * 4, 2 * 3 * 4, 2 * 3 * 4};
    void* outputs[] = {device(sizes[0]), device(sizes[1]), device(sizes[2]), device(sizes[3])};
    const PluginTensorDesc in[] = {tensor({2, 4, 5}, DataType::kFLOAT), tensor({2, 4, 2}, DataType::kFLOAT)};
    const PluginTensorDesc out[] = {tensor({2, 1}, DataType::kINT32), tensor({2, 3, 5}, DataType::kFLOAT),
                                    tensor({2, 3}, DataType::kFLOAT), tensor({2, 3}, DataType::kINT32)};
    const DynamicPluginTensorDesc dynamic[] = {dynamic_tensor({2, 4, 5}, 2, DataType::kFLOAT),
                                               dynamic_tensor({2, 4, 2}, 2, DataType::kFLOAT)};
    void* scratch = device(build_of(*plugin).getWorkspaceSize(dynamic, 2, nullptr, 4));
    CHECK(runtime_of(*plugin).onShapeChange(in, 2, out, 4) == 0);
    CHECK(runtime_of(*plugin).enqueue(in, out, inputs, outputs, scratch, nullptr) == 0);
    CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess);

    std::vector<std::vector<char>> host;
    for (int i = 0; i < 4; ++i) {
        host.emplace_back(sizes[i]);
        CHECK(cudaMemcpy(host[i].data(), outputs[i], sizes[i], cudaMemcpyDefault) == cudaSuccess);
    }
    const auto* counts = reinterpret_cast<const int32_t*>(host[0].data());
    const auto* rows = reinterpret_cast<const float*>(host[1].data());
    const auto* best = reinterpret_cast<const float*>(host[2].data());
    const auto* labels = reinterpret_cast<const int32_t*>(host[3].data());
    CHECK(counts[0] == 2 && counts[1] == 0);
    CHECK(best[0] == 0.9f && labels[0] == 0 && memcmp(rows, &boxes[10], 20) == 0);
    CHECK(best[1] == 0.7f && labels[1] == 1 && memcmp(rows + 5, &boxes[5], 20) == 0);
    for (int i = 10; i < 30; ++i) {
        CHECK(rows[i] == 0.0f);
    }

    messages.clear();
    CHECK(runtime_of(*plugin).enqueue(in, out, inputs, outputs, nullptr, nullptr) != 0);  // no workspace
    CHECK(messages.says("error: RotatedNMS: invalid argument"));
}

struct Check {
    const char* name;
    void (*run)();
};
constexpr Check checks[] = {
    {"identity", identity},     {"shapes", shapes},       {"impossible_shapes", impossible_shapes},
    {"types", types_and_formats}, {"serialisation", serialisation}, {"attributes", attributes},
    {"workspace", workspace},   {"enqueue", enqueue},
};

}  // namespace

int main(int argument_count, char** arguments) {
    CHECK(argument_count == 3);
    load(arguments[1]);
    for (const Check& check : checks) {
        if (strcmp(check.name, arguments[2]) == 0) {
            check.run();
            return 0;
        }
    }
    fprintf(report, "no check %s\n", arguments[2]);
    return 1;
}
