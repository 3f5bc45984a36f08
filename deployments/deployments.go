// Package deployments contains what is needed to run the mesh on servers: the image of a service (Dockerfile), the
// secrets of an installation (env.sh), and, at the root of the repository, docker-compose.yml. Its only Go code is
// the tests of these files, which need no Docker engine.
package deployments
