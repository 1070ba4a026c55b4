// rgfl._core: arrays in, arrays out. Shapes and types are checked in rgfl/geometry.py, which is
// the only caller.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cpu/box_arrays.hpp"
#include "cpu/instruction_sets.hpp"
#include "cpu/quad.hpp"
#include "cpu/rotated_iou.hpp"
#include "cpu/rotated_nms.hpp"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

std::size_t rows(const py::array& array) { return static_cast<std::size_t>(array.shape(0)); }

rgfl::InstructionSet instruction_set(const std::string& name) {
    const std::pair<const char*, rgfl::InstructionSet> names[] = {
        {"baseline", rgfl::InstructionSet::baseline},
        {"avx2", rgfl::InstructionSet::avx2},
        {"avx512", rgfl::InstructionSet::avx512},
    };
    if (name.empty()) {
        static const rgfl::InstructionSet best = rgfl::best_instruction_set();
        return best;
    }
    for (const auto& [candidate, set] : names) {
        if (name == candidate && rgfl::is_supported(set)) {
            return set;
        }
    }
    throw py::value_error("this machine and build have no instruction set '" + name + "'");
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names{"baseline"};
    if (rgfl::is_supported(rgfl::InstructionSet::avx2)) {
        names.push_back("avx2");
    }
    if (rgfl::is_supported(rgfl::InstructionSet::avx512)) {
        names.push_back("avx512");
    }
    return names;
}

template <class T>
py::array_t<T> rotated_iou(const Array<T>& a, const Array<T>& b, const std::string& set_name) {
    const rgfl::InstructionSet set = instruction_set(set_name);
    py::array_t<T> out({rows(a), rows(b)});
    const T *boxes_a = a.data(), *boxes_b = b.data();
    T* values = out.mutable_data();
    {
        py::gil_scoped_release released;
        rgfl::iou_matrix(rgfl::BoxArrays<T>(boxes_a, rows(a)),
                         rgfl::BoxArrays<T>(boxes_b, rows(b)), values, set);
    }
    return out;
}

template <class T>
py::array_t<T> rotated_iou_pairwise(const Array<T>& a, const Array<T>& b, const std::string& set_name) {
    const rgfl::InstructionSet set = instruction_set(set_name);
    py::array_t<T> out(static_cast<py::ssize_t>(rows(a)));
    const T *boxes_a = a.data(), *boxes_b = b.data();
    T* values = out.mutable_data();
    {
        py::gil_scoped_release released;
        const rgfl::BoxArrays<T> prepared_a(boxes_a, rows(a));
        const rgfl::BoxArrays<T> prepared_b(boxes_b, rows(b));
        rgfl::iou_pairwise(prepared_a.columns(), prepared_b.columns(), rows(a), values, set);
    }
    return out;
}

py::array_t<double> quad_iou(const Array<double>& a, const Array<double>& b) {
    py::array_t<double> out({rows(a), rows(b)});
    const double *quads_a = a.data(), *quads_b = b.data();
    double* values = out.mutable_data();
    {
        py::gil_scoped_release released;
        rgfl::quad_iou_matrix(quads_a, rows(a), quads_b, rows(b), values);
    }
    return out;
}

py::array_t<double> quad_iou_pairwise(const Array<double>& a, const Array<double>& b) {
    py::array_t<double> out(static_cast<py::ssize_t>(rows(a)));
    const double *quads_a = a.data(), *quads_b = b.data();
    double* values = out.mutable_data();
    {
        py::gil_scoped_release released;
        rgfl::quad_iou_pairwise(quads_a, quads_b, rows(a), values);
    }
    return out;
}

py::array_t<double> min_area_rectangles(const Array<double>& quads) {
    py::array_t<double> out({rows(quads), std::size_t{5}});
    const double* values_in = quads.data();
    double* values = out.mutable_data();
    {
        py::gil_scoped_release released;
        rgfl::min_area_rectangles(values_in, rows(quads), values);
    }
    return out;
}

using Nms = std::vector<std::int64_t> (*)(const float*, const float*, const std::int64_t*, std::size_t, float,
                                          rgfl::InstructionSet);

template <Nms nms>
py::array_t<std::int64_t> kept_indices(const Array<float>& boxes, const Array<float>& scores,
                                       const std::optional<Array<std::int64_t>>& labels, float threshold,
                                       const std::string& set_name) {
    const rgfl::InstructionSet set = instruction_set(set_name);
    const float *box_values = boxes.data(), *score_values = scores.data();
    const std::int64_t* label_values = labels ? labels->data() : nullptr;
    std::vector<std::int64_t> kept;
    {
        py::gil_scoped_release released;
        kept = nms(box_values, score_values, label_values, rows(boxes), threshold, set);
    }
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(kept.size()), kept.data());
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "Compiled geometry of rgfl; call it through rgfl.geometry, which checks the shapes.";
    m.def("rotated_iou_float32", &rotated_iou<float>, py::arg("a"), py::arg("b"),
          py::arg("instruction_set") = "");
    m.def("rotated_iou_float64", &rotated_iou<double>, py::arg("a"), py::arg("b"),
          py::arg("instruction_set") = "");
    m.def("rotated_iou_pairwise_float32", &rotated_iou_pairwise<float>, py::arg("a"), py::arg("b"),
          py::arg("instruction_set") = "");
    m.def("rotated_iou_pairwise_float64", &rotated_iou_pairwise<double>, py::arg("a"), py::arg("b"),
          py::arg("instruction_set") = "");
    m.def("quad_iou", &quad_iou, py::arg("a"), py::arg("b"));
    m.def("quad_iou_pairwise", &quad_iou_pairwise, py::arg("a"), py::arg("b"));
    m.def("min_area_rectangles", &min_area_rectangles, py::arg("quads"));
    m.def("rotated_nms", &kept_indices<&rgfl::rotated_nms>, py::arg("boxes"), py::arg("scores"),
          py::arg("labels").none(true), py::arg("iou_threshold"), py::arg("instruction_set") = "");
    m.def("_rotated_nms_quadratic", &kept_indices<&rgfl::rotated_nms_quadratic>, py::arg("boxes"),
          py::arg("scores"), py::arg("labels").none(true), py::arg("iou_threshold"), py::arg("instruction_set") = "");
    m.def("instruction_sets", &instruction_sets, "Those this machine and build can run, best last.");
    m.def(
        "_sin_cos",
        [](double angle) {
            const rgfl::SinCos turn = rgfl::sin_cos(angle);
            return py::make_tuple(turn.sin, turn.cos);
        },
        py::arg("angle"));
}
