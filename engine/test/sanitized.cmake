# Builds the engine and its tests with a sanitizer, and runs them:
#
#     cmake -DSOURCE=engine -DBUILD=/tmp/thread -DGENERATOR=Ninja -DSANITIZE=thread -P engine/test/sanitized.cmake
#
# SANITIZE is as -fsanitize takes it; TESTS names some of the tests with commas between, and all are run where it is not given.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "failed: ${ARGN}")
  endif()
endfunction()

cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
run(${CMAKE_COMMAND} -S ${SOURCE} -B ${BUILD} -G ${GENERATOR} -DMILLRACE_SANITIZE=${SANITIZE} -DMILLRACE_TESTS=${TESTS})
run(${CMAKE_COMMAND} --build ${BUILD} --target engine_tests --parallel ${cores})
run(${CMAKE_CTEST_COMMAND} --test-dir ${BUILD} --output-on-failure --parallel ${cores})
