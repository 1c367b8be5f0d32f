#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "acl/acl.h"
#include "aclnn/acl_meta.h"

using Numbers = std::vector<int64_t>;

[[noreturn]] static void fail(const char *what, int code) {
    const char *text = aclGetRecentErrMsg();
    std::fprintf(stderr, "it could not be run: %s answers %d %s\n", what, code, text ? text : "");
    std::exit(2);
}

#define DO(call)                                  \
    do {                                          \
        int code = static_cast<int>(call);        \
        if (code != 0) fail(#call, code);         \
    } while (0)

// Device memory, and what each of its parts holds before a run.
static char *memory[5];
static std::vector<char> before[5];
static char *workspace;
static uint64_t workspaceBytes;

[[maybe_unused]] static aclTensor *tensor(int space, size_t byte, aclDataType type, Numbers sizes, Numbers strides, int64_t offset,
                         int64_t storage) {
    return aclCreateTensor(sizes.data(), sizes.size(), type, strides.data(), offset, ACL_FORMAT_ND, &storage, 1,
                           memory[space] + byte);
}

[[maybe_unused]] static aclTensorList *list(std::vector<aclTensor *> tensors) {
    return aclCreateTensorList(tensors.data(), tensors.size());
}

[[maybe_unused]] static aclIntArray *numbers(Numbers values) { return aclCreateIntArray(values.data(), values.size()); }

[[maybe_unused]] static aclScalar *scalar(float value) { return aclCreateScalar(&value, ACL_FLOAT); }

[[maybe_unused]] static aclScalar *scalar(int64_t value) { return aclCreateScalar(&value, ACL_INT64); }

// Memory that a call asks for.
static void *room(uint64_t bytes) {
    if (bytes > workspaceBytes) {
        void *fresh = nullptr;
        DO(aclrtMalloc(&fresh, bytes, ACL_MEM_MALLOC_HUGE_FIRST));
        workspace = static_cast<char *>(fresh);
        workspaceBytes = bytes;
    }
    return bytes ? workspace : nullptr;
}

template <typename T> static T read(const char *bytes, size_t index) {
    T value;
    std::memcpy(&value, bytes + index * sizeof(T), sizeof(T));
    return value;
}

static double bf16(const char *bytes, size_t index) {
    uint32_t bits = static_cast<uint32_t>(read<uint16_t>(bytes, index)) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct Output {
    const char *name;
    const char *type;
    int space;
    size_t byte;
    std::vector<double> want;
    // The largest distance that is accepted of each element; empty where it must be exact.
    std::vector<double> bound;
};

// Prints what one output is; gives the number of wrong elements.
static size_t wrongIn(const Output &output, const char *bytes, bool told) {
    size_t wrong = 0, worst = 0;
    double worstError = -1, worstGot = 0;
    bool brain = !std::strcmp(output.type, "bf16"), real = brain || !std::strcmp(output.type, "f32");
    for (size_t i = 0; i < output.want.size(); ++i) {
        double want = output.want[i];
        double got = brain                              ? bf16(bytes, i)
                     : real                             ? read<float>(bytes, i)
                     : !std::strcmp(output.type, "u32") ? read<uint32_t>(bytes, i)
                                                        : read<int32_t>(bytes, i);
        bool both = std::isnan(want) && std::isnan(got);
        bool near = !output.bound.empty() && std::isfinite(want) && std::isfinite(got) &&
                    std::fabs(got - want) <= output.bound[i];
        if (both || got == want || near) continue;
        ++wrong;
        double error = std::fabs(got - want);
        if (!std::isfinite(error)) error = INFINITY;
        if (error > worstError) worst = i, worstError = error, worstGot = got;
    }
    if (told) {
        std::printf("%s: %zu of %zu elements are wrong", output.name, wrong, output.want.size());
        if (wrong)
            std::printf("; element %zu: got %.9g, exact %.9g, error %.3g, bound %.3g", worst, worstGot,
                        output.want[worst], worstError, output.bound.empty() ? 0.0 : output.bound[worst]);
        std::printf("\n");
    }
    return wrong;
}

static void put(int space, size_t byte, const std::vector<uint32_t> &words, size_t bytes) {
    std::memcpy(before[space].data() + byte, words.data(), bytes);
}

