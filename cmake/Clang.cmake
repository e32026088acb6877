# Makes the clang beside swiftc the C compiler, unless the user chose another clang: both then come from
# one LLVM, and the kernels' vector code is the one that was tested. A CC that is no clang is passed over,
# and said to be: Python's build tools set it to gcc unasked.
if(NOT DEFINED CMAKE_C_COMPILER AND NOT "$ENV{CC}" MATCHES "clang")
  file(REAL_PATH "${BATCHNORM_SWIFTC}" swiftc_itself)
  cmake_path(GET swiftc_itself PARENT_PATH swift_folder)
  if(EXISTS "${swift_folder}/clang")
    set(CMAKE_C_COMPILER "${swift_folder}/clang" CACHE FILEPATH "The clang that ships with Swift")
    if(NOT "$ENV{CC}" STREQUAL "")
      message(NOTICE "CC=$ENV{CC} is passed over, for the kernels are written for clang; "
        "compiling with ${CMAKE_C_COMPILER}")
    endif()
  endif()
endif()
