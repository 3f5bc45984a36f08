package edumatrix

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// installation contains the addresses and the credential with which an operator's subcommand calls the brokers and the
// services of a mesh.
type installation struct {
	declared   *catalog.Catalog
	kafka      backend.Kafka
	peers      map[string]string
	credential rpc.Credential
	client     *http.Client
}

// findInstallation reads the settings from the environment, and missing ones from the mesh that runs in the data
// directory, if there is one. Without such a mesh, the environment must contain a credential.
func findInstallation(t Terminal) (*installation, error) {
	_ = process.NewLog(t.Err) // keeps go-redis from writing to standard error
	c, err := config.Load(config.AllInOne, t.Getenv)
	if err != nil {
		return nil, err
	}
	mesh, missing := findMesh(t.Getenv)
	i := &installation{kafka: c.Kafka, peers: c.Peers, credential: rpc.Credential(c.ServiceSecret)}
	if missing == nil {
		if !c.Given["kafka"] {
			i.kafka.Brokers, i.kafka.TopicPrefix = mesh.Brokers, mesh.TopicPrefix
		}
		for owner, url := range mesh.Services {
			if t.Getenv(peerVariable(owner)) == "" {
				i.peers[owner] = url
			}
		}
		if i.credential == "" {
			i.credential = rpc.Credential(mesh.ServiceSecret)
		}
	} else if i.credential == "" {
		return nil, fmt.Errorf("%w; for a mesh of separate services set SERVICE_SECRET (or the JWT_SECRET from which it is "+
			"derived), KAFKA_BROKERS and the services' URLs to the same values as the services", missing)
	}
	if i.declared, err = catalog.Load(); err != nil {
		return nil, err
	}
	i.client = rpc.NewClient(i.credential, noop.NewTracerProvider().Tracer(""))
	return i, nil
}

// log returns a client for the OwnerService of a service, or an error if the service owns no log.
func (i *installation) log(owner string) (meshv1connect.OwnerServiceClient, error) {
	if err := i.known(owner); err != nil {
		return nil, err
	}
	return meshv1connect.NewOwnerServiceClient(i.client, i.peers[owner]), nil
}

// operator returns a client for the OperatorService of a service, or an error if the service owns no log.
func (i *installation) operator(owner string) (meshv1connect.OperatorServiceClient, error) {
	if err := i.known(owner); err != nil {
		return nil, err
	}
	return i.operatorOf(owner), nil
}

// operatorOf returns a client for the OperatorService of any service. Services without a log have an OperatorService
// too, because they also record which of their dead letters were dropped.
func (i *installation) operatorOf(service string) meshv1connect.OperatorServiceClient {
	return meshv1connect.NewOperatorServiceClient(i.client, i.peers[service])
}

func (i *installation) known(owner string) error {
	if logs := i.declared.Logs(); !slices.Contains(logs, owner) {
		return fmt.Errorf("%q owns no log; the services with a log are %s", owner, strings.Join(logs, ", "))
	}
	return nil
}

// answered returns the error of a failed call with the name of the service, and with instructions for the operator if
// the service was unavailable or did not accept the credential. It returns nil if err is nil.
func (i *installation) answered(owner string, err error) error {
	if err == nil {
		return nil
	}
	if connect.CodeOf(err) == connect.CodeUnauthenticated {
		return fmt.Errorf("%s does not accept this credential: set SERVICE_SECRET, or the JWT_SECRET from which it is derived",
			owner)
	}
	if refused, ok := rpc.Refusal(err); ok {
		return fmt.Errorf("%s: %s", owner, refused.Text)
	}
	if errors.Is(err, rpc.ErrUnreachable) || connect.CodeOf(err) == connect.CodeUnavailable {
		return fmt.Errorf("%s does not respond at %s: check that it is running and that %s is correct (%w)", owner, i.peers[owner],
			peerVariable(owner), err)
	}
	return fmt.Errorf("%s: %w", owner, err)
}

// reachesKafka checks the connection to Kafka. Its error contains instructions for the operator.
func (i *installation) reachesKafka(ctx context.Context) error { return i.kafka.Check(ctx) }

// arguments parses flags and arguments in any order, and returns the arguments.
func arguments(f *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, errUsage
		}
		if f.NArg() == 0 {
			return rest, nil
		}
		rest, args = append(rest, f.Arg(0)), f.Args()[1:]
	}
}

// wrongly prints an error about the arguments and returns errUsage.
func (t Terminal) wrongly(format string, args ...any) error {
	fmt.Fprintf(t.Err, format+"\n", args...)
	return errUsage
}
