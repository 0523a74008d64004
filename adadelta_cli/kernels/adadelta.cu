// The update in one pass over memory on a GPU: the fused step.
//
// A launch updates any number of tensors, from a table in device memory. Each is split into tiles of
// TILE_ELEMENTS, numbered over all tensors; each block processes one tile after another, so the work
// is even whatever the mix of sizes. An element's result depends on that element only.
//
// kernels/cuda.py defines TILE_ELEMENTS and THREADS, the threads of a block.

// --- arithmetic ----------------------------------------------------------------------------------

#ifdef __CUDA_ARCH__  // tests/host_cuda.h has the same for a host's compiler

// A float or a double with operations that round once, to nearest, and flush nothing, as those of
// kernels/cpu.py and update.py. With built-in operators the compiler's options would choose the
// instructions, and CuPy always adds -ftz=true (https://github.com/cupy/cupy/issues/8382).
template <typename Number>
struct Real {
    Number value;
};

struct Half {
    unsigned short bits;
};

// PTX ISA, "Floating Point Instructions": .rn rounds to nearest even, keeps subnormals, and is never
// contracted into a fused multiply-add.
#define OPERATOR(SIGN, NAME, NUMBER, TYPE, REGISTER)                                  \
    inline __device__ Real<NUMBER> operator SIGN(Real<NUMBER> a, Real<NUMBER> b) {    \
        asm(NAME ".rn." TYPE " %0, %0, %1;" : "+" REGISTER(a.value) : REGISTER(b.value)); \
        return a;                                                                     \
    }

#define ARITHMETIC(NUMBER, TYPE, REGISTER)                                            \
    OPERATOR(+, "add", NUMBER, TYPE, REGISTER)                                        \
    OPERATOR(-, "sub", NUMBER, TYPE, REGISTER)                                        \
    OPERATOR(*, "mul", NUMBER, TYPE, REGISTER)                                        \
    OPERATOR(/, "div", NUMBER, TYPE, REGISTER)                                        \
    inline __device__ Real<NUMBER> sqrt(Real<NUMBER> a) {                             \
        asm("sqrt.rn." TYPE " %0, %0;" : "+" REGISTER(a.value));                      \
        return a;                                                                     \
    }                                                                                 \
    inline __device__ bool operator<(Real<NUMBER> a, Real<NUMBER> b) {                \
        int less;                                                                     \
        asm("{ .reg .pred p; setp.lt." TYPE " p, %1, %2; selp.s32 %0, 1, 0, p; }"     \
            : "=r"(less) : REGISTER(a.value), REGISTER(b.value));                     \
        return less;                                                                  \
    }

ARITHMETIC(float, "f32", "f")
ARITHMETIC(double, "f64", "d")

inline __device__ void round_to(Real<float>& to, Real<double> from) {
    asm("cvt.rn.f32.f64 %0, %1;" : "=f"(to.value) : "d"(from.value));
}

inline __device__ void round_to(Half& to, Real<float> from) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(from.value));
}

inline __device__ Real<float> widened(Half from) {
    Real<float> to;
    asm("cvt.f32.f16 %0, %1;" : "=f"(to.value) : "h"(from.bits));
    return to;
}

#endif

template <typename Number>
inline __device__ void round_to(Real<Number>& to, Real<Number> from) {
    to = from;
}

template <typename Number>
inline __device__ Real<Number> widened(Real<Number> from) {
    return from;
}

// --- the update of one element -------------------------------------------------------------------

// The hyper-parameters of all tensors, in double.
struct Hyper {
    double rescale_grad, clip, rho, one_minus_rho, epsilon;
};

// One element of each array, in the type of the states.
template <typename State>
struct Element {
    State weight, grad, acc_grad, acc_delta;
};

template <typename State>
inline __device__ State rounded(double number) {
    State to;
    round_to(to, Real<double>{number});
    return to;
}

// Without decay, the sum is omitted: 0 * weight would be NaN for an infinite weight.
template <typename State, bool decays>
struct Update {
    State rescale_grad, least, most, rho, one_minus_rho, epsilon, learning_rate, wd;

    __device__ Update(const Hyper& hyper, double learning_rate, double wd)
        : rescale_grad(rounded<State>(hyper.rescale_grad)),
          least(rounded<State>(-hyper.clip)),
          most(rounded<State>(hyper.clip)),
          rho(rounded<State>(hyper.rho)),
          one_minus_rho(rounded<State>(hyper.one_minus_rho)),
          epsilon(rounded<State>(hyper.epsilon)),
          learning_rate(rounded<State>(learning_rate)),
          wd(rounded<State>(wd)) {}

    __device__ void operator()(Element<State>& e) const {
        State grad = e.grad * rescale_grad;
        grad = grad < least ? least : grad;  // a NaN passes through
        grad = most < grad ? most : grad;
        if constexpr (decays) grad = grad + wd * e.weight;
        e.acc_grad = e.acc_grad * rho;
        e.acc_grad = e.acc_grad + one_minus_rho * (grad * grad);
        State delta = sqrt(e.acc_delta + epsilon) / sqrt(e.acc_grad + epsilon) * grad;
        e.acc_delta = e.acc_delta * rho;
        e.acc_delta = e.acc_delta + one_minus_rho * (delta * delta);
        e.weight = e.weight - learning_rate * delta;
    }
};

template <typename State>
using UpdateWithDecay = Update<State, true>;

template <typename State>
using UpdateWithoutDecay = Update<State, false>;

// The same traffic with next to no arithmetic: the memory roof of the update.
template <typename State>
struct Traffic {
    State factor;  // passed as rescale_grad; so small that no value changes

    __device__ Traffic(const Hyper& hyper, double, double)
        : factor(rounded<State>(hyper.rescale_grad)) {}

    __device__ void operator()(Element<State>& e) const {
        State change = e.grad * factor;
        e.weight = e.weight + change;
        e.acc_grad = e.acc_grad + change;
        e.acc_delta = e.acc_delta + change;
    }
};

// --- the sweep over memory -----------------------------------------------------------------------

// A row of the table; TENSOR in kernels/cuda.py is the same as a NumPy dtype.
struct Tensor {
    void* weight;  // the updated one: the master where there is one
    const void* grad;
    void* acc_grad;
    void* acc_delta;
    void* half;  // the float16 weight beside a master, else null
    long long size;
    long long first_tile;
    double learning_rate;
    double wd;
};

// The types of a tensor's arrays in memory.
template <typename WeightType, typename GradType, typename StateType, bool with_half>
struct Layout {
    using Weight = WeightType;
    using Grad = GradType;
    using State = StateType;
    static constexpr bool has_half = with_half;
    // Elements that a thread accesses at once: 16 bytes of a state, 8 bytes of float16. So the
    // threads of a warp access whole sectors of every array.
    static constexpr int width = 16 / sizeof(State);
};

// Adjacent elements, read and written in one access.
template <typename Type, int width>
struct alignas(sizeof(Type) * width) Pack {
    Type lane[width];

    static __device__ Pack& at(void* array, long long i) {
        __builtin_assume(__isGlobal(array));
        return static_cast<Pack*>(array)[i];
    }

    static __device__ const Pack& at(const void* array, long long i) {
        __builtin_assume(__isGlobal(array));
        return static_cast<const Pack*>(array)[i];
    }

    static __device__ bool fits(const void* array) {
        return reinterpret_cast<unsigned long long>(array) % sizeof(Pack) == 0;
    }
};

// Return whether all arrays are aligned to their packs.
template <typename K>
inline __device__ bool aligned(const Tensor& tensor) {
    return Pack<typename K::Weight, K::width>::fits(tensor.weight) &&
           Pack<typename K::Grad, K::width>::fits(tensor.grad) &&
           Pack<typename K::State, K::width>::fits(tensor.acc_grad) &&
           Pack<typename K::State, K::width>::fits(tensor.acc_delta) &&
           Pack<Half, K::width>::fits(tensor.half);
}

// Load the i-th pack of each array, do the work on each element, and store the packs: all loads come
// before any use.
template <typename K, int width, typename Work>
inline __device__ void visit(const Tensor& tensor, long long i, const Work& work) {
    using States = Pack<typename K::State, width>;
    using Weights = Pack<typename K::Weight, width>;
    using Grads = Pack<typename K::Grad, width>;
    Weights weights = Weights::at(tensor.weight, i);
    const Grads grads = Grads::at(tensor.grad, i);
    States acc_grads = States::at(tensor.acc_grad, i);
    States acc_deltas = States::at(tensor.acc_delta, i);
    Pack<Half, width> halves = {};
#pragma unroll
    for (int k = 0; k < width; ++k) {
        Element<typename K::State> e = {widened(weights.lane[k]), widened(grads.lane[k]),
                                        acc_grads.lane[k], acc_deltas.lane[k]};
        work(e);
        round_to(weights.lane[k], e.weight);
        acc_grads.lane[k] = e.acc_grad;
        acc_deltas.lane[k] = e.acc_delta;
        if constexpr (K::has_half) round_to(halves.lane[k], e.weight);
    }
    Weights::at(tensor.weight, i) = weights;
    States::at(tensor.acc_grad, i) = acc_grads;
    States::at(tensor.acc_delta, i) = acc_deltas;
    if constexpr (K::has_half) Pack<Half, width>::at(tensor.half, i) = halves;
}

// Find the tensor of a tile: the last that begins with it or before. Of tensors that begin with the
// same tile, all but the last are empty.
inline __device__ long long owner(const Tensor* table, long long tensors, long long tile) {
    long long low = 0;
    while (tensors - low > 1) {
        const long long middle = (low + tensors) / 2;
        if (table[middle].first_tile <= tile) {
            low = middle;
        } else {
            tensors = middle;
        }
    }
    return low;
}

template <typename K, template <typename> class Work>
inline __device__ void sweep(const Tensor* table, long long tensors, long long tiles,
                             const Hyper& hyper) {
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Tensor tensor = table[owner(table, tensors, tile)];
        const Work<typename K::State> work(hyper, tensor.learning_rate, tensor.wd);
        const long long low = (tile - tensor.first_tile) * TILE_ELEMENTS;
        const long long left = tensor.size - low;
        const int size = left < TILE_ELEMENTS ? left : TILE_ELEMENTS;
        const int packs = aligned<K>(tensor) ? size / K::width : 0;
        static_assert(TILE_ELEMENTS % K::width == 0, "packs do not cross tiles");
#pragma unroll 1
        for (int i = threadIdx.x; i < packs; i += THREADS) {
            visit<K, K::width>(tensor, low / K::width + i, work);
        }
#pragma unroll 1
        for (int i = packs * K::width + threadIdx.x; i < size; i += THREADS) {
            visit<K, 1>(tensor, low + i, work);
        }
    }
}

// --- the kernels ---------------------------------------------------------------------------------

#define KERNEL(NAME, WORK, ...)                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                             \
    NAME(const Tensor* __restrict__ table, long long tensors, long long tiles,        \
         double rescale_grad, double clip, double rho, double one_minus_rho,          \
         double epsilon) {                                                            \
        const Hyper hyper = {rescale_grad, clip, rho, one_minus_rho, epsilon};        \
        sweep<Layout<__VA_ARGS__>, WORK>(table, tensors, tiles, hyper);               \
    }

#define KERNELS(NAME, ...)                     \
    KERNEL(update_##NAME, UpdateWithDecay, __VA_ARGS__) \
    KERNEL(update_no_decay_##NAME, UpdateWithoutDecay, __VA_ARGS__) \
    KERNEL(traffic_##NAME, Traffic, __VA_ARGS__)

KERNELS(float32, Real<float>, Real<float>, Real<float>, false)
KERNELS(float64, Real<double>, Real<double>, Real<double>, false)
KERNELS(float16, Half, Half, Real<float>, false)
KERNELS(float16_master, Real<float>, Half, Real<float>, true)

// --- the unfused step: one operation a kernel ----------------------------------------------------

// Each side is an array or, if its address is null, one value for all elements.
#define OPERATION(NAME, NUMBER, RESULT, EXPRESSION)                                            \
    extern "C" __global__ void NAME(RESULT* out, const Real<NUMBER>* lefts,                    \
                                    const Real<NUMBER>* rights, Real<NUMBER> left,             \
                                    Real<NUMBER> right, long long size) {                      \
        const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;               \
        long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;           \
        for (; i < size; i += stride) {                                                        \
            const Real<NUMBER> a = lefts ? lefts[i] : left, b = rights ? rights[i] : right;    \
            out[i] = EXPRESSION;                                                               \
        }                                                                                      \
    }

#define OPERATIONS(NAME, NUMBER)                                  \
    OPERATION(add_##NAME, NUMBER, Real<NUMBER>, a + b)            \
    OPERATION(subtract_##NAME, NUMBER, Real<NUMBER>, a - b)       \
    OPERATION(multiply_##NAME, NUMBER, Real<NUMBER>, a * b)       \
    OPERATION(divide_##NAME, NUMBER, Real<NUMBER>, a / b)         \
    OPERATION(sqrt_##NAME, NUMBER, Real<NUMBER>, sqrt(a))         \
    OPERATION(less_##NAME, NUMBER, bool, a < b)

OPERATIONS(float32, float)
OPERATIONS(float64, double)
