# What `make install` lays down: program, library (static), headers, pkg-config file, the shipped model.
include(GNUInstallDirs)
install(TARGETS moefuse RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS moefuse_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/moefuse.h include/moefuse_engine.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY models/word-problems DESTINATION ${CMAKE_INSTALL_DATADIR}/moefuse/models)
# The prefix is only known at install time (cmake --install --prefix), so the file is written then.
install(CODE "
  set(moefuse_libdir \"${CMAKE_INSTALL_LIBDIR}\")
  set(moefuse_includedir \"${CMAKE_INSTALL_INCLUDEDIR}\")
  set(moefuse_version \"${PROJECT_VERSION}\")
  configure_file(\"${CMAKE_SOURCE_DIR}/cmake/moefuse.pc.in\" \"${CMAKE_BINARY_DIR}/moefuse.pc\" @ONLY)
")
install(FILES ${CMAKE_BINARY_DIR}/moefuse.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
