# The backend for Hopper GPUs, or a word that it was not built. cudart is linked statically and looks for the driver when it is first
# called; cuBLASLt is opened at run time where it is installed.

# By hand: CMake before 3.26 does not know that nvcc 13 has C++20.
function(cuda_options target)
  set_target_properties(${target} PROPERTIES CUDA_STANDARD_REQUIRED OFF)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr>")
endfunction()

if(MILLRACE_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
  enable_language(CUDA)
  find_package(CUDAToolkit 13 REQUIRED)
  file(GLOB cuda_sources CONFIGURE_DEPENDS src/cuda/*.cu src/cuda/*.cpp)
  list(FILTER cuda_sources EXCLUDE REGEX "none[.]cpp$")
  add_library(millrace_cuda OBJECT ${cuda_sources} src/kv/pages_cuda.cpp)
  target_include_directories(millrace_cuda PRIVATE include src)
  cuda_options(millrace_cuda)
  target_link_libraries(millrace_cuda PRIVATE CUDA::cudart_static)
  target_sources(millrace_core PRIVATE $<TARGET_OBJECTS:millrace_cuda>)
  target_link_libraries(millrace_core PUBLIC CUDA::cudart_static ${CMAKE_DL_LIBS})
else()
  target_sources(millrace_core PRIVATE src/cuda/none.cpp)
endif()
