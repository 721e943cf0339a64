// Registration functions of the bindings; module.cc calls them.
#pragma once

#include <pybind11/pybind11.h>

namespace mmn_fast {

void register_cpu_ops(pybind11::module_& module);
void register_search(pybind11::module_& module);
void register_video_encoder(pybind11::module_& module);
void register_text_encoder(pybind11::module_& module);
void register_gpu_ops(pybind11::module_& module);

}  // namespace mmn_fast
