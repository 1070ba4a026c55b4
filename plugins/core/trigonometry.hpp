// Sine and cosine of any finite angle, the same bits on CPU and GPU.
//
// No libm and no intrinsic: those differ by a unit in the last place between machines, which is
// enough to flip a suppression that sits on the threshold. Computed once per box, so in double.
#pragma once

#include <stdint.h>
#include <string.h>

#include "core/scalar.hpp"

namespace rgfl {

struct SinCos {
    double sin, cos;
};

// Angle = quarter_turns · π/2 + rest with |rest| ≤ π/4 (a little more after rounding).
struct ReducedAngle {
    double rest;
    int quarter_turns;  // modulo 4
};

// High 64 bits of a·b.
RGFL_HOST_DEVICE uint64_t multiply_high(uint64_t a, uint64_t b) {
    const uint64_t a0 = a & 0xffffffffu, a1 = a >> 32;
    const uint64_t b0 = b & 0xffffffffu, b1 = b >> 32;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32);
    const uint64_t middle_low = a0 * b1 + (middle & 0xffffffffu);
    return a1 * b1 + (middle >> 32) + (middle_low >> 32);
}

// 2/π · |angle| modulo 4 in 128-bit fixed point (Payne and Hanek 1983): exact where a
// subtraction of multiples of π/2 would have lost every digit. For |angle| ≥ 2⁻³⁰ only.
RGFL_HOST_DEVICE ReducedAngle reduce_large_angle(double angle) {
    // The first 1,152 binary digits of 2/π after the point.
    const uint64_t two_over_pi[18] = {
        0xa2f9836e4e441529u, 0xfc2757d1f534ddc0u, 0xdb6295993c439041u, 0xfe5163abdebbc561u,
        0xb7246e3a424dd2e0u, 0x06492eea09d1921cu, 0xfe1deb1cb129a73eu, 0xe88235f52ebb4484u,
        0xe99c7026b45f7e41u, 0x3991d639835339f4u, 0x9c845f8bbdf9283bu, 0x1ff897ffde05980fu,
        0xef2f118b5a0a6d1fu, 0x6d367ecf27cb09b7u, 0x4f463f669e5fea2du, 0x7527bac7ebe5f17bu,
        0x3d0739f78a5292eau, 0x6bfb5fb11f8d5d08u};
    uint64_t bits;
    memcpy(&bits, &angle, sizeof bits);
    const int exponent = static_cast<int>((bits >> 52) & 0x7ff) - 1075;
    const uint64_t mantissa = (bits & 0xfffffffffffffu) | 0x10000000000000u;

    // |angle| = mantissa · 2^exponent, so the digits of 2/π that matter modulo 4 end at the
    // place of 2^−(exponent + 126): a window of 128 that starts at `first` (0: behind the point).
    const int first = exponent - 2;
    uint64_t window[2];
    for (int i = 0; i < 2; ++i) {
        const int start = first + 64 * i;
        uint64_t word = 0;
        if (start <= -64) {
            word = 0;
        } else if (start < 0) {
            word = two_over_pi[0] >> -start;
        } else {
            const int shift = start & 63;
            word = two_over_pi[start >> 6] << shift;
            if (shift != 0) {
                word |= two_over_pi[(start >> 6) + 1] >> (64 - shift);
            }
        }
        window[i] = word;
    }
    const uint64_t low = mantissa * window[1];
    const uint64_t high = mantissa * window[0] + multiply_high(mantissa, window[1]);

    int quarter_turns = static_cast<int>(high >> 62);
    const uint64_t fraction = (high << 2) | (low >> 62);
    double turns = static_cast<double>(fraction) * 0x1p-64;
    if (fraction >> 63 != 0) {
        quarter_turns += 1;
        turns = -(static_cast<double>(~fraction + 1) * 0x1p-64);
    }
    const double rest = turns * 1.5707963267948966;
    const bool negative = (bits >> 63) != 0;
    return negative ? ReducedAngle{-rest, -quarter_turns & 3} : ReducedAngle{rest, quarter_turns & 3};
}

// π/2 in three parts (Cody and Waite 1980): multiples of the first two below 2²⁰ are exact.
RGFL_HOST_DEVICE ReducedAngle reduce_angle(double angle) {
    if (!(absolute(angle) < 1e6)) {
        return reduce_large_angle(angle);
    }
    const double round_to_integer = 6755399441055744.0;  // 1.5 · 2⁵²
    const double turns = (angle * 0.6366197723675814 + round_to_integer) - round_to_integer;
    const double rest = ((angle - turns * 1.5707963267341256) - turns * 6.077100506303966e-11) -
                        turns * 2.0222662487959506e-21;
    return {rest, static_cast<int>(turns) & 3};
}

// Taylor series on |rest| ≤ π/4, where the first term left out is below 1e-19.
// Not meaningful for an infinite or NaN angle; callers refuse those first.
RGFL_HOST_DEVICE SinCos sin_cos(double angle) {
    const ReducedAngle reduced = reduce_angle(angle);
    const double x = reduced.rest;
    const double z = x * x;
    double s = 1.0 / 355687428096000.0;
    s = s * z - 1.0 / 1307674368000.0;
    s = s * z + 1.0 / 6227020800.0;
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = x + x * (z * s);
    double c = 1.0 / 20922789888000.0;
    c = c * z - 1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = c * z - 0.5;
    c = 1.0 + z * c;
    switch (reduced.quarter_turns) {
        case 0:
            return {s, c};
        case 1:
            return {c, -s};
        case 2:
            return {-s, -c};
        default:
            return {-c, s};
    }
}

}  // namespace rgfl
