// Package deployments contains files for running the mesh on servers: the Dockerfile of a service's image, and env.sh,
// which generates the secrets of an installation. Its Go code consists of tests of these files, of docker-compose.yml
// and of the documents. The tests need no Docker engine.
package deployments
