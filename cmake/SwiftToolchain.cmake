# Finds swiftc, and makes the clang beside it the C compiler unless the user chose one: both then
# come from one LLVM, and the kernels' vector code is the one that was tested. A CC that is no clang is
# no choice: Python's build tools set it to gcc unasked.
find_program(BATCHNORM_SWIFTC swiftc HINTS /opt/swift/usr/bin /usr/share/swift/usr/bin)
if(NOT BATCHNORM_SWIFTC)
  message(FATAL_ERROR "swiftc is missing: put Swift 6.2 or newer (https://swift.org/install) on PATH")
endif()
execute_process(COMMAND "${BATCHNORM_SWIFTC}" --version
  OUTPUT_VARIABLE swift_version ERROR_VARIABLE swift_version_error)
string(REGEX MATCH "Swift version ([0-9]+\\.[0-9]+(\\.[0-9]+)?)" _ "${swift_version}")
set(BATCHNORM_SWIFT_VERSION "${CMAKE_MATCH_1}")
if(BATCHNORM_SWIFT_VERSION VERSION_LESS 6.2)
  message(FATAL_ERROR "${BATCHNORM_SWIFTC} is Swift '${BATCHNORM_SWIFT_VERSION}', expected 6.2 or "
    "newer (https://swift.org/install)\n${swift_version}${swift_version_error}")
endif()

if(NOT DEFINED CMAKE_C_COMPILER AND NOT "$ENV{CC}" MATCHES "clang")
  file(REAL_PATH "${BATCHNORM_SWIFTC}" swiftc_itself)
  cmake_path(GET swiftc_itself PARENT_PATH swift_folder)
  if(EXISTS "${swift_folder}/clang")
    set(CMAKE_C_COMPILER "${swift_folder}/clang" CACHE FILEPATH "The clang that ships with Swift")
  endif()
endif()
