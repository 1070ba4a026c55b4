// Half precision for the emulated kernels: a type, and its exact widening.
#pragma once

#include "cuda_runtime.h"

struct __half {
    uint16_t bits;
};

inline float __half2float(__half half) {
    const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000u) << 16;
    const uint32_t exponent = half.bits >> 10 & 0x1fu, mantissa = half.bits & 0x3ffu;
    if (exponent == 0) {
        const float subnormal = static_cast<float>(mantissa) * 0x1p-24f;
        return sign != 0 ? -subnormal : subnormal;
    }
    const uint32_t wide = exponent == 31 ? 0x7f800000u : (exponent + 112) << 23;
    return emulator::from_bits<float>(sign | wide | mantissa << 13);
}
