// The part of ONNX Runtime's C interface that is used here.
//
// ONNX Runtime's Python wheel ships the library without its headers. Version 1 of `OrtApi` is a table of
// function pointers whose order can't change any more (onnxruntime_c_api.cc asserts that it ends at slot 101),
// and every later library hands it out through GetApi(1); so the few slots needed are declared by position.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quantrim::ort {

struct Env;
struct Status;
struct MemoryInfo;
struct Session;
struct Value;
struct RunOptions;
struct TypeInfo;
struct TensorInfo;
struct SessionOptions;
struct Allocator;

constexpr uint32_t kApiVersion = 1;
constexpr int kError = 3;           // OrtLoggingLevel
constexpr int kArenaAllocator = 1;  // OrtAllocatorType
constexpr int kDefaultMemory = 0;   // OrtMemType
enum ElementType { kFloat = 1, kInt32 = 6, kInt64 = 7 };  // ONNXTensorElementDataType

// Functions return nullptr, or a Status to be released.
struct Api {
    void* skipped_0[2];
    const char* (*GetErrorMessage)(const Status*);
    Status* (*CreateEnv)(int level, const char* log_id, Env**);
    void* skipped_4[3];
    Status* (*CreateSession)(const Env*, const char* path, const SessionOptions*, Session**);
    void* skipped_8[1];
    Status* (*Run)(Session*, const RunOptions*, const char* const* input_names, const Value* const* inputs,
                   size_t input_count, const char* const* output_names, size_t output_count, Value** outputs);
    Status* (*CreateSessionOptions)(SessionOptions**);
    void* skipped_11[11];
    Status* (*SetSessionLogSeverityLevel)(SessionOptions*, int level);
    void* skipped_23[1];
    Status* (*SetIntraOpNumThreads)(SessionOptions*, int count);
    void* skipped_25[5];
    Status* (*SessionGetInputCount)(const Session*, size_t*);
    Status* (*SessionGetOutputCount)(const Session*, size_t*);
    void* skipped_32[1];
    Status* (*SessionGetInputTypeInfo)(const Session*, size_t index, TypeInfo**);
    void* skipped_34[2];
    Status* (*SessionGetInputName)(const Session*, size_t index, Allocator*, char**);
    Status* (*SessionGetOutputName)(const Session*, size_t index, Allocator*, char**);
    void* skipped_38[11];
    Status* (*CreateTensorWithDataAsOrtValue)(const MemoryInfo*, void* data, size_t bytes, const int64_t* shape,
                                              size_t rank, int type, Value**);
    void* skipped_50[1];
    Status* (*GetTensorMutableData)(Value*, void**);
    void* skipped_52[3];
    Status* (*CastTypeInfoToTensorInfo)(const TypeInfo*, const TensorInfo**);
    void* skipped_56[4];
    Status* (*GetTensorElementType)(const TensorInfo*, int*);
    Status* (*GetDimensionsCount)(const TensorInfo*, size_t*);
    Status* (*GetDimensions)(const TensorInfo*, int64_t*, size_t count);
    void* skipped_63[1];
    Status* (*GetTensorShapeElementCount)(const TensorInfo*, size_t*);
    Status* (*GetTensorTypeAndShape)(const Value*, TensorInfo**);
    void* skipped_66[3];
    Status* (*CreateCpuMemoryInfo)(int allocator_type, int memory_type, MemoryInfo**);
    void* skipped_70[6];
    Status* (*AllocatorFree)(Allocator*, void*);
    void* skipped_77[1];
    Status* (*GetAllocatorWithDefaultOptions)(Allocator**);
    void* skipped_79[13];
    void (*ReleaseEnv)(Env*);
    void (*ReleaseStatus)(Status*);
    void (*ReleaseMemoryInfo)(MemoryInfo*);
    void (*ReleaseSession)(Session*);
    void (*ReleaseValue)(Value*);
    void* skipped_97[1];
    void (*ReleaseTypeInfo)(TypeInfo*);
    void (*ReleaseTensorInfo)(TensorInfo*);
    void (*ReleaseSessionOptions)(SessionOptions*);
    void* skipped_101[1];
};

#define QUANTRIM_SLOT(function, slot) static_assert(offsetof(Api, function) == (slot) * sizeof(void*))
QUANTRIM_SLOT(CreateEnv, 3);
QUANTRIM_SLOT(CreateSession, 7);
QUANTRIM_SLOT(Run, 9);
QUANTRIM_SLOT(SetSessionLogSeverityLevel, 22);
QUANTRIM_SLOT(SetIntraOpNumThreads, 24);
QUANTRIM_SLOT(SessionGetInputTypeInfo, 33);
QUANTRIM_SLOT(SessionGetInputName, 36);
QUANTRIM_SLOT(CreateTensorWithDataAsOrtValue, 49);
QUANTRIM_SLOT(GetTensorMutableData, 51);
QUANTRIM_SLOT(CastTypeInfoToTensorInfo, 55);
QUANTRIM_SLOT(GetTensorElementType, 60);
QUANTRIM_SLOT(GetTensorTypeAndShape, 65);
QUANTRIM_SLOT(CreateCpuMemoryInfo, 69);
QUANTRIM_SLOT(AllocatorFree, 76);
QUANTRIM_SLOT(GetAllocatorWithDefaultOptions, 78);
QUANTRIM_SLOT(ReleaseEnv, 92);
QUANTRIM_SLOT(ReleaseSessionOptions, 100);
#undef QUANTRIM_SLOT

struct ApiBase {
    const Api* (*GetApi)(uint32_t version);
    const char* (*GetVersionString)();
};

}  // namespace quantrim::ort
