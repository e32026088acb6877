# What `cmake --install` puts where: library, header, module map, licence, CMake package, pkg-config file.
# A Python wheel (SKBUILD) gets the library alone, under its SONAME, inside the package's folder.
include(CMakePackageConfigHelpers)

if(DEFINED SKBUILD)
  install(FILES "$<TARGET_FILE:batchnorm>" DESTINATION batchnorm COMPONENT python
    RENAME "$<TARGET_SONAME_FILE_NAME:batchnorm>"
    PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ
      WORLD_EXECUTE)
  return()
endif()

set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/BatchNorm")

install(TARGETS batchnorm EXPORT BatchNormTargets
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES include/batchnorm.h DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")

# The module map lives in a folder of its own: one named module.modulemap directly in a shared include
# folder would speak for every header there.
file(READ include/module.modulemap module_map)
string(REPLACE "header \"batchnorm.h\"" "header \"../batchnorm.h\"" module_map "${module_map}")
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/install/module.modulemap"
  CONTENT "${module_map}" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/install/module.modulemap"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/batchnorm")

install(EXPORT BatchNormTargets NAMESPACE BatchNorm:: DESTINATION "${package_folder}")
configure_package_config_file(cmake/BatchNormConfig.cmake.in
  "${CMAKE_CURRENT_BINARY_DIR}/install/BatchNormConfig.cmake"
  INSTALL_DESTINATION "${package_folder}")
write_basic_package_version_file(
  "${CMAKE_CURRENT_BINARY_DIR}/install/BatchNormConfigVersion.cmake"
  VERSION "${PROJECT_VERSION}" COMPATIBILITY ${BATCHNORM_COMPATIBILITY})
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/install/BatchNormConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/install/BatchNormConfigVersion.cmake"
  DESTINATION "${package_folder}")

# Relative to the .pc file itself, so that the tree may be installed anywhere and moved.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(pc_prefix "${CMAKE_INSTALL_PREFIX}")
  set(pc_libdir "${CMAKE_INSTALL_FULL_LIBDIR}")
  set(pc_includedir "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
else()
  file(RELATIVE_PATH up "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
  string(REGEX REPLACE "/$" "" up "${up}")
  set(pc_prefix "\${pcfiledir}/${up}")
  set(pc_libdir "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
  set(pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
configure_file(cmake/batchnorm.pc.in "${CMAKE_CURRENT_BINARY_DIR}/install/batchnorm.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/install/batchnorm.pc"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
