// CUDA's keywords and types for a host's C++ compiler: put before the source of adadelta.cu.
//
// A simulation: host_launch runs a kernel block after block and thread after thread. So it is for
// kernels whose threads do not wait for each other.

#include <csetjmp>
#include <cstddef>
#include <utility>

#define __global__ __attribute__((used))  // by which host_cuda.py finds the kernels
#define __device__
#define __launch_bounds__(...)
#define __restrict__
#define __isGlobal(pointer) true
#ifndef __clang__
#define __builtin_assume(condition)
#endif

struct Dim3 {
    unsigned x;
};
static thread_local Dim3 gridDim, blockDim, blockIdx, threadIdx;

// --- numbers, with the host's own arithmetic -----------------------------------------------------

template <typename Number>
struct Real {
    Number value;
};

#define OPERATOR(SIGN)                                                     \
    template <typename Number>                                             \
    inline Real<Number> operator SIGN(Real<Number> a, Real<Number> b) {    \
        return {a.value SIGN b.value};                                     \
    }
OPERATOR(+)
OPERATOR(-)
OPERATOR(*)
OPERATOR(/)
#undef OPERATOR

// The compiler's own, without <cmath>, which takes longer to compile than the kernels.
inline float sqrt(float a) {
    return __builtin_sqrtf(a);
}

inline double sqrt(double a) {
    return __builtin_sqrt(a);
}

inline Real<float> sqrt(Real<float> a) {
    return {__builtin_sqrtf(a.value)};
}

inline Real<double> sqrt(Real<double> a) {
    return {__builtin_sqrt(a.value)};
}

template <typename Number>
inline bool operator<(Real<Number> a, Real<Number> b) {
    return a.value < b.value;
}

struct Half {
    unsigned short bits;
};

inline void round_to(Real<float>& to, Real<double> from) {
    to.value = static_cast<float>(from.value);
}

#if defined(__x86_64__) && !defined(__FLT16_MANT_DIG__)  // a compiler without the type
#include <immintrin.h>

inline void round_to(Half& to, Real<float> from) {
    to.bits = _cvtss_sh(from.value, _MM_FROUND_TO_NEAREST_INT);
}

inline Real<float> widened(Half from) {
    return {_cvtsh_ss(from.bits)};
}
#else
inline void round_to(Half& to, Real<float> from) {
    const _Float16 half = from.value;
    to.bits = __builtin_bit_cast(unsigned short, half);
}

inline Real<float> widened(Half from) {
    return {__builtin_bit_cast(_Float16, from.bits)};
}
#endif

// --- launching -----------------------------------------------------------------------------------

static thread_local std::jmp_buf misaligned;

// Called where -fsanitize=alignment finds an address that is not a multiple of what its type
// demands: a GPU ends the kernel there too.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) {
    std::longjmp(misaligned, 1);
}

template <typename... Parameters, std::size_t... number>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<number...>) {
    kernel(*static_cast<Parameters*>(arguments[number])...);
}

// Run the blocks [first, last) of a grid; tell whether an address was misaligned.
template <typename... Parameters>
int host_launch(void (*kernel)(Parameters...), unsigned grid, unsigned block, unsigned first,
                unsigned last, void** arguments) {
    if (setjmp(misaligned)) return 1;
    gridDim.x = grid;
    blockDim.x = block;
    for (blockIdx.x = first; blockIdx.x < last; ++blockIdx.x) {
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) {
            call(kernel, arguments, std::index_sequence_for<Parameters...>());
        }
    }
    return 0;
}

// Behind the source, once for each kernel.
#define HOST_KERNEL(name)                                                                     \
    extern "C" int host_##name(unsigned grid, unsigned block, unsigned first, unsigned last,  \
                               void** arguments) {                                            \
        return host_launch(name, grid, block, first, last, arguments);                        \
    }
