// TensorRT's headers ask for this name.
#pragma once

#include "cuda_runtime.h"
