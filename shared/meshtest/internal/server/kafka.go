package server

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/backend"
)

const kafkaImage = "apache/kafka:" + KafkaVersion

// Kafka is a real broker, one node in KRaft mode.
type Kafka struct {
	daemon
	settings backend.Kafka
}

// StartKafka starts a broker on empty data. The broker directs clients to the port in the parameter advertised, such as
// the port of a proxy (0: to the broker's own port).
func StartKafka(ctx context.Context, log *slog.Logger, advertised int) (*Kafka, error) {
	dir, err := NewDir("kafka")
	if err != nil {
		return nil, err
	}
	k := &Kafka{daemon: daemon{name: "Kafka", dir: dir}}
	if err := k.start(ctx, log, advertised); err != nil {
		return nil, errors.Join(err, k.Remove())
	}
	return k, nil
}

func (k *Kafka) start(ctx context.Context, log *slog.Logger, advertised int) error {
	port, err := FreePort()
	if err != nil {
		return err
	}
	if advertised == 0 {
		advertised = port
	}
	controller, err := FreePort()
	if err != nil {
		return err
	}
	k.settings = backend.Kafka{Brokers: []string{fmt.Sprintf("127.0.0.1:%d", port)}, ClientID: "meshtest"}
	k.answers = func(context.Context) error { return serves(k.settings) }
	switch {
	case hasJava(ctx) && installed("mvn"):
		err = k.onJava(ctx, log, port, controller, advertised)
	case engineAnswers():
		options := []string{}
		for _, setting := range append(kafkaSettings(advertised, controller), "listeners="+
			fmt.Sprintf("PLAINTEXT://:%d,CONTROLLER://127.0.0.1:%d", port, controller)) {
			name, value, _ := strings.Cut(setting, "=")
			name = "KAFKA_" + strings.ToUpper(strings.ReplaceAll(name, ".", "_"))
			options = append(options, "--env", name+"="+value)
		}
		err = k.contain(ctx, kafkaImage, port, options, nil)
	default:
		err = errNoKafka
	}
	if err != nil {
		return err
	}
	return k.Start(ctx)
}

var errNoKafka = errors.New("there is no real Kafka: install Java 17 or later and Maven, or start Docker, or set " +
	"KAFKA_BROKERS; as root, or with sudo, make test installs them where there is apt-get")

// onJava prepares the broker's data and sets the command that runs the broker on the machine's Java.
func (k *Kafka) onJava(ctx context.Context, log *slog.Logger, port, controller, advertised int) error {
	jars, err := kafkaJars(ctx, log)
	if err != nil {
		return err
	}
	file := filepath.Join(k.dir, "server.properties")
	settings := append(kafkaSettings(advertised, controller),
		fmt.Sprintf("listeners=PLAINTEXT://127.0.0.1:%d,CONTROLLER://127.0.0.1:%d", port, controller),
		"log.dirs="+filepath.Join(k.dir, "data"))
	if err := os.WriteFile(file, []byte(strings.Join(settings, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	classes := filepath.Join(jars, "*")
	const clusterID = "5L6g3nShT-eMCtK--X86sw"
	out, err := exec.CommandContext(ctx, "java", "-cp", classes, "kafka.tools.StorageTool", "format",
		"--cluster-id", clusterID, "--config", file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format Kafka's data folder (Java 17 or later is needed): %w:\n%s", err, tail(out))
	}
	k.command = func() *exec.Cmd {
		return exec.Command("java", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classes,
			"kafka.Kafka", file)
	}
	return nil
}

// kafkaSettings returns the settings of a node that is broker and controller in one. The second group shortens a
// restart: the controller accepts a broker again only when the broker's registration from before the restart has
// expired. The last group makes many short tests on one broker cheap: the files of deleted topics are removed after a
// second, and the indexes of topics and the broker's own topics are small.
func kafkaSettings(advertised, controller int) []string {
	return []string{
		"process.roles=broker,controller",
		"node.id=1",
		fmt.Sprintf("controller.quorum.voters=1@127.0.0.1:%d", controller),
		fmt.Sprintf("advertised.listeners=PLAINTEXT://127.0.0.1:%d", advertised),
		"controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
		"inter.broker.listener.name=PLAINTEXT",
		"auto.create.topics.enable=false",
		"group.initial.rebalance.delay.ms=0",
		"offsets.topic.replication.factor=1",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",

		"broker.session.timeout.ms=3000",
		"broker.heartbeat.interval.ms=500",

		"offsets.topic.num.partitions=10",
		"transaction.state.log.num.partitions=1",
		"log.segment.delete.delay.ms=1000",
		"log.index.size.max.bytes=1048576",
	}
}

// serves returns an error unless the broker's metadata contains a broker and the controller. A broker accepts requests
// before it has this metadata.
func serves(k backend.Kafka) error {
	client, err := kgo.NewClient(append(k.Options(), kgo.RequestRetries(0))...)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	found, err := kadm.NewClient(client).BrokerMetadata(ctx)
	switch {
	case err != nil:
		return err
	case len(found.Brokers) == 0:
		return errors.New("the response contains no broker")
	case found.Controller < 0:
		return errors.New("the response contains no controller")
	}
	return nil
}

// Settings returns the address of the broker.
func (k *Kafka) Settings() backend.Kafka { return k.settings }
