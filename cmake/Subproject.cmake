# Inside another project (add_subdirectory, FetchContent) libbatchnorm is built by a CMake of its own,
# and BatchNorm::batchnorm is imported from there. So the other project may use any compiler, gcc too,
# where the kernels need clang, and any flags: -ffast-math would change results, and sanitizers find their own.
# The other project's installation includes this one's.
include(ExternalProject)
include(GNUInstallDirs)
include(Libomp)

if(DEFINED BUILD_SHARED_LIBS AND NOT BUILD_SHARED_LIBS)
  message(NOTICE "BUILD_SHARED_LIBS is ${BUILD_SHARED_LIBS}; libbatchnorm is a shared library all the same, "
    "which programs need beside them when they are shipped")
endif()

set(generator "${CMAKE_GENERATOR}")
if(generator STREQUAL "Ninja Multi-Config")
  set(generator Ninja)  # of this library there is one configuration
endif()

set(folder "${CMAKE_CURRENT_BINARY_DIR}/build")
set(library "${folder}/libbatchnorm.so")
ExternalProject_Add(batchnorm_build
  SOURCE_DIR "${CMAKE_CURRENT_SOURCE_DIR}"
  BINARY_DIR "${folder}"
  CMAKE_GENERATOR "${generator}"
  CMAKE_ARGS
    "-DCMAKE_BUILD_TYPE=Release"
    "-DCMAKE_INSTALL_PREFIX=${CMAKE_INSTALL_PREFIX}"
    "-DCMAKE_INSTALL_LIBDIR=${CMAKE_INSTALL_LIBDIR}"
    "-DCMAKE_INSTALL_INCLUDEDIR=${CMAKE_INSTALL_INCLUDEDIR}"
    "-DBATCHNORM_SWIFTC=${BATCHNORM_SWIFTC}"
    "-DBATCHNORM_LIBOMP=${BATCHNORM_LIBOMP}"
  BUILD_ALWAYS ON  # which finds changed sources, or nothing to do
  BUILD_BYPRODUCTS "${library}"
  INSTALL_COMMAND "")

add_library(batchnorm SHARED IMPORTED GLOBAL)
set_target_properties(batchnorm PROPERTIES
  IMPORTED_LOCATION "${library}"
  INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_SOURCE_DIR}/include")
add_dependencies(batchnorm batchnorm_build)
add_library(BatchNorm::batchnorm ALIAS batchnorm)

install(CODE "block(PROPAGATE CMAKE_INSTALL_MANIFEST_FILES)
  set(CMAKE_INSTALL_CONFIG_NAME Release)
  include(\"${folder}/cmake_install.cmake\")
endblock()")
