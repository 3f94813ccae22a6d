# Constrained output, by xgrammar's C++ core: `npm run build -- --formats` fetches it and sets this. It takes over half a minute to compile on two
# cores, so it is left out where it was not asked for, and the engine then refuses formats by name.
set(MILLRACE_XGRAMMAR "" CACHE PATH "The unpacked source archive of xgrammar (scripts/setup/formats.ts says which); empty: no constrained output")

if(MILLRACE_XGRAMMAR AND EXISTS "${MILLRACE_XGRAMMAR}/include/xgrammar/xgrammar.h")
  file(GLOB_RECURSE xgrammar_sources ${MILLRACE_XGRAMMAR}/cpp/*.cc)
  list(FILTER xgrammar_sources EXCLUDE REGEX "/nanobind/")
  add_library(xgrammar STATIC EXCLUDE_FROM_ALL ${xgrammar_sources})
  set_target_properties(xgrammar PROPERTIES CXX_STANDARD 17)
  target_compile_options(xgrammar PRIVATE -w -O2)
  target_compile_definitions(xgrammar PUBLIC XGRAMMAR_LOG_CUSTOMIZE=1 XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
  target_include_directories(xgrammar SYSTEM PUBLIC ${MILLRACE_XGRAMMAR}/include ${MILLRACE_XGRAMMAR}/3rdparty/picojson
    ${MILLRACE_XGRAMMAR}/3rdparty/dlpack/include)
  target_sources(millrace_core PRIVATE src/constrain/xgrammar.cpp)
  target_link_libraries(millrace_core PRIVATE xgrammar)
else()
  target_sources(millrace_core PRIVATE src/constrain/none.cpp)
endif()
