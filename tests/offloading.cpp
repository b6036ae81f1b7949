// A device for ggml's scheduler that wants what CUDA, Vulkan and Metal want: every operation of a large batch, wherever
// its weights lie. It has memory and computes nothing: with llama.cpp's `no_alloc` nothing is computed either, but
// everything is scheduled and measured. Built by tests/offloading.py against ggml's own headers.

#include <cstdlib>
#include <cstring>

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

namespace {

constexpr int64_t LARGE = 32;  // tokens, from which on CUDA takes an operation over
ggml_backend_device DEVICE;
ggml_backend_reg REGISTRY;

// ---- memory

void free_buffer(ggml_backend_buffer_t buffer) { std::free(buffer->context); }
void * base_of(ggml_backend_buffer_t buffer) { return buffer->context; }
void set_memory(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {}
void set_tensor(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {}
void get_tensor(ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t) {}
void clear(ggml_backend_buffer_t, uint8_t) {}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_i face = {};
    face.free_buffer = free_buffer;
    face.get_base = base_of;
    face.memset_tensor = set_memory;
    face.set_tensor = set_tensor;
    face.get_tensor = get_tensor;
    face.clear = clear;
    return ggml_backend_buffer_init(type, face, std::aligned_alloc(128, (size + 127) / 128 * 128), size);
}

const char * device_memory_name(ggml_backend_buffer_type_t) { return "GPU"; }
const char * host_memory_name(ggml_backend_buffer_type_t) { return "CPU pinned"; }
size_t alignment(ggml_backend_buffer_type_t) { return 128; }
bool yes(ggml_backend_buffer_type_t) { return true; }

ggml_backend_buffer_type DEVICE_MEMORY = {{device_memory_name, allocate, alignment, nullptr, nullptr, nullptr}, &DEVICE, nullptr};
ggml_backend_buffer_type HOST_MEMORY = {{host_memory_name, allocate, alignment, nullptr, nullptr, yes}, &DEVICE, nullptr};

// ---- the device

const char * name(ggml_backend_dev_t) { return "GPU0"; }
enum ggml_backend_dev_type kind(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
void memory(ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = size_t(1) << 40; }
ggml_backend_buffer_type_t device_memory(ggml_backend_dev_t) { return &DEVICE_MEMORY; }
ggml_backend_buffer_type_t host_memory(ggml_backend_dev_t) { return &HOST_MEMORY; }
bool computes(ggml_backend_dev_t, const ggml_tensor *) { return true; }
bool reads(ggml_backend_dev_t, ggml_backend_buffer_type_t type) { return type == &DEVICE_MEMORY; }

int64_t batch(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS: return 0;
        case GGML_OP_MUL_MAT: return op->ne[1];
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE: return op->ne[2];
        default: return ggml_nrows(op);
    }
}

bool wants(ggml_backend_dev_t, const ggml_tensor * op) { return batch(op) >= LARGE; }

void properties(ggml_backend_dev_t device, ggml_backend_dev_props * found) {
    std::memset(found, 0, sizeof(*found));
    found->name = found->description = name(device);
    found->type = kind(device);
    memory(device, &found->memory_free, &found->memory_total);
}

// ---- a stream of it, that is never asked to compute

const char * stream_name(ggml_backend_t) { return "GPU0"; }
void free_stream(ggml_backend_t stream) { delete stream; }
enum ggml_status compute(ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_FAILED; }

ggml_backend_t stream(ggml_backend_dev_t, const char *) {
    static ggml_guid id = {0x70, 0x6c, 0x61, 0x6e};
    ggml_backend_i face = {};
    face.get_name = stream_name;
    face.free = free_stream;
    face.graph_compute = compute;
    return new ggml_backend{&id, face, &DEVICE, nullptr};
}

const char * registry_name(ggml_backend_reg_t) { return "GPU"; }
size_t count(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t device(ggml_backend_reg_t, size_t) { return &DEVICE; }

}  // namespace

extern "C" ggml_backend_reg_t offloading_registry() {
    DEVICE.iface = {};
    DEVICE.iface.get_name = DEVICE.iface.get_description = name;
    DEVICE.iface.get_memory = memory;
    DEVICE.iface.get_type = kind;
    DEVICE.iface.get_props = properties;
    DEVICE.iface.init_backend = stream;
    DEVICE.iface.get_buffer_type = device_memory;
    DEVICE.iface.get_host_buffer_type = host_memory;
    DEVICE.iface.supports_op = computes;
    DEVICE.iface.supports_buft = reads;
    DEVICE.iface.offload_op = wants;
    DEVICE.reg = &REGISTRY;
    REGISTRY.api_version = GGML_BACKEND_API_VERSION;
    REGISTRY.iface = {};
    REGISTRY.iface.get_name = registry_name;
    REGISTRY.iface.get_device_count = count;
    REGISTRY.iface.get_device = device;
    return &REGISTRY;
}
