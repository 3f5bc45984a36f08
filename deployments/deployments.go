// Package deployments holds how the mesh is run on servers: the image of a service (Dockerfile), the secrets of an
// installation (env.sh), and, at the root of the repository, docker-compose.yml. There is no Go code in it but the
// tests that hold these files to what they promise, without a Docker engine.
package deployments
