package backend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	tryKafka        = "is it running, and is KAFKA_BROKERS right (host:port, separated by commas)?"
	tryKafkaStorage = "is its disk full?"

	// CheckName is the client software name that Check sends. An embedded broker that has a data directory refuses
	// requests under this name while it cannot store records.
	CheckName = "edumatrix-check"
)

// Kafka contains the addresses of the brokers, the name of the client in the brokers' logs, and a prefix for the names
// of topics and consumer groups.
type Kafka struct {
	Brokers  []string
	ClientID string

	// TopicPrefix goes before the names of topics and consumer groups, so that several installations can share brokers.
	TopicPrefix string
}

// Topic returns the name that a topic of the catalog, or a consumer group, has on the brokers.
func (k Kafka) Topic(name string) string { return k.TopicPrefix + name }

// Where returns the addresses of the brokers.
func (k Kafka) Where() string { return strings.Join(k.Brokers, ",") }

func (k Kafka) String() string { return "kafka " + k.Where() }

// Check sends a request to the brokers in turn until one responds without an error, and returns an error if none does.
// An embedded broker with a data directory responds with an error while it cannot store records.
func (k Kafka) Check(ctx context.Context) error {
	_, err := k.apiVersions(ctx)
	return err
}

// apiVersions requests the list of supported request versions from the brokers in turn, until one responds without an
// error.
func (k Kafka) apiVersions(ctx context.Context) (*kmsg.ApiVersionsResponse, error) {
	problems := []error{}
	for _, address := range k.Brokers {
		response, err := k.askVersions(ctx, address)
		if err == nil {
			return response, nil
		}
		problems = append(problems, err)
	}
	if len(problems) == 0 {
		problems = append(problems, errors.New("no broker is named"))
	}
	err := errors.Join(problems...)
	if errors.Is(err, kerr.KafkaStorageError) {
		return nil, unreachable("Kafka", k.Where(), tryKafkaStorage, err)
	}
	return nil, unreachable("Kafka", k.Where(), tryKafka, err)
}

// askVersions sends the request of apiVersions to one broker, over a new connection. Checks run every second, and a
// complete client for each check would cost too much.
func (k Kafka) askVersions(ctx context.Context, address string) (_ *kmsg.ApiVersionsResponse, err error) {
	const id, maxAnswer = 1, 1 << 20
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", address, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	connection, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = connection.Close() }()
	defer context.AfterFunc(ctx, func() { _ = connection.Close() })()

	request := kmsg.NewApiVersionsRequest()
	request.Version = 3
	request.ClientSoftwareName, request.ClientSoftwareVersion = CheckName, "1"
	formatter := kmsg.NewRequestFormatter(kmsg.FormatterClientID(k.ClientID))
	if _, err := connection.Write(formatter.AppendRequest(nil, &request, id)); err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	var head [8]byte // length of the response, and the id of its request
	if _, err := io.ReadFull(connection, head[:]); err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < 4 || size > maxAnswer || binary.BigEndian.Uint32(head[4:]) != id {
		return nil, errors.New("this is not a Kafka broker")
	}
	body := make([]byte, size-4)
	if _, err := io.ReadFull(connection, body); err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	response := kmsg.NewPtrApiVersionsResponse()
	response.Version = request.Version
	if len(body) >= 2 && int16(binary.BigEndian.Uint16(body)) == kerr.UnsupportedVersion.Code {
		response.Version = 0 // the broker does not support the requested version and answers in version 0
	}
	if err := response.ReadFrom(body); err != nil {
		return nil, fmt.Errorf("this is not a Kafka broker: %w", err)
	}
	return response, kerr.ErrorForCode(response.ErrorCode)
}

// admin opens a client for the administration of topics. This client retries fewer times than other clients, because
// the caller of admin waits.
func (k Kafka) admin() (*kgo.Client, *kadm.Client, error) {
	if len(k.Brokers) == 0 {
		return nil, nil, unreachable("Kafka", k.Where(), tryKafka, errors.New("no broker is named"))
	}
	client, err := kgo.NewClient(append(k.Options(), kgo.RequestRetries(2), kgo.RetryTimeout(10*time.Second))...)
	if err != nil {
		return nil, nil, unreachable("Kafka", k.Where(), tryKafka, err)
	}
	return client, kadm.NewClient(client), nil
}
