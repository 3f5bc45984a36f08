package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/filelock"
)

// KafkaOptions configure an embedded broker.
type KafkaOptions struct {
	// Dir is the folder of topics, records and the offsets of groups. Acknowledged records survive a crash of this
	// process, but not necessarily a crash of the machine. "": the broker keeps everything in memory only.
	Dir  string
	Port int // 0: a free one
	Log  *slog.Logger

	// DeleteEvery is the interval between searches for expired records (0: 30 s).
	DeleteEvery time.Duration
}

// Kafka is a broker of Kafka's protocol in this process.
type Kafka struct {
	cluster *kfake.Cluster
	lock    *filelock.Lock
	deleter *deleter
	stop    sync.Once
	end     context.CancelFunc
	ended   chan struct{}
}

// StartKafka starts a broker with the data that an earlier broker has stored in o.Dir.
//
// Clients configure retention as on any broker, but the broker itself does not delete records. If the broker emptied a
// partition, the partition's offsets would begin at 0 again after a restart. The offsets of the groups would still be
// higher, so the groups would skip new records. Instead, the broker keeps records without a limit and stores the
// requested retention as backend.KeptRetention. A deleter removes records that are older than this retention, except
// the last record of a partition and, for each group that has committed an offset, the records from that offset on.
func StartKafka(o KafkaOptions) (_ *Kafka, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.DeleteEvery <= 0 {
		o.DeleteEvery = 30 * time.Second
	}
	k := &Kafka{ended: make(chan struct{})}
	defer func() {
		if err != nil {
			err = fmt.Errorf("embedded Kafka: %w", err)
			if k.lock != nil {
				k.lock.Release()
			}
		}
	}()
	options := []kfake.Opt{
		kfake.ListenFn(lasting(o.Log, net.Listen)), kfake.Ports(o.Port), kfake.ClusterID("edumatrix-interlinked"),
		kfake.WithLogger(kafkaLog{o.Log}), kfake.BrokerConfigs(map[string]string{"log.retention.ms": "-1"}),
	}
	if o.Dir != "" {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return nil, err
		}
		if k.lock, err = lockFile(filepath.Join(o.Dir, "lock")); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Dir, err)
		}
		options = append(options, kfake.DataDir(filepath.Join(o.Dir, "records")))
	}
	if o.Port != 0 {
		if err := portIsFree(o.Port); err != nil {
			return nil, err
		}
	}
	over := slow(o.Log, "reading the data of the embedded Kafka", "dir", o.Dir)
	k.cluster, err = kfake.NewCluster(options...)
	if over(); err != nil {
		return nil, err
	}
	k.keepUnlimited()
	if o.Dir != "" {
		(&storage{path: filepath.Join(o.Dir, "probe"), log: o.Log}).answerChecks(k.cluster)
	}

	var ctx context.Context
	ctx, k.end = context.WithCancel(context.Background())
	k.deleter = &deleter{kafka: backend.Kafka{Brokers: k.Brokers(), ClientID: "retention"}, log: o.Log}
	go func() {
		defer close(k.ended)
		k.deleter.run(ctx, o.DeleteEvery)
	}()
	return k, nil
}

// Brokers returns the address of the broker.
func (k *Kafka) Brokers() []string { return k.cluster.ListenAddrs() }

// Stop stops the broker; requests in flight may fail. Stop may be called again.
func (k *Kafka) Stop() {
	k.stop.Do(func() {
		k.end()
		<-k.ended
		k.cluster.Close()
		if k.lock != nil {
			k.lock.Release()
		}
	})
}

const retentionSetting = "retention.ms"

// keepUnlimited rewrites requests that create topics or change the settings of topics. For the broker, retention.ms is
// always -1, so that it deletes nothing itself. A requested retention becomes the topic's setting
// backend.KeptRetention, which the deleter reads.
func (k *Kafka) keepUnlimited() {
	unlimited := "-1"
	k.cluster.ControlKey(int16(kmsg.CreateTopics), func(r kmsg.Request) (kmsg.Response, error, bool) {
		for i := range r.(*kmsg.CreateTopicsRequest).Topics {
			t := &r.(*kmsg.CreateTopicsRequest).Topics[i]
			for j := range t.Configs {
				if t.Configs[j].Name == retentionSetting {
					t.Configs[j].Name = backend.KeptRetention
				}
			}
			own := kmsg.NewCreateTopicsRequestTopicConfig()
			own.Name, own.Value = retentionSetting, &unlimited
			t.Configs = append(t.Configs, own)
		}
		return nil, nil, false
	})
	k.cluster.ControlKey(int16(kmsg.IncrementalAlterConfigs), func(r kmsg.Request) (kmsg.Response, error, bool) {
		for _, resource := range r.(*kmsg.IncrementalAlterConfigsRequest).Resources {
			for j := range resource.Configs {
				if resource.Configs[j].Name == retentionSetting {
					resource.Configs[j].Name = backend.KeptRetention
				}
			}
		}
		return nil, nil, false
	})
	k.cluster.ControlKey(int16(kmsg.AlterConfigs), func(r kmsg.Request) (kmsg.Response, error, bool) {
		for i := range r.(*kmsg.AlterConfigsRequest).Resources {
			resource := &r.(*kmsg.AlterConfigsRequest).Resources[i]
			for j := range resource.Configs {
				if resource.Configs[j].Name == retentionSetting {
					resource.Configs[j].Name = backend.KeptRetention
				}
			}
			if resource.ResourceType == kmsg.ConfigResourceTypeTopic {
				own := kmsg.NewAlterConfigsRequestResourceConfig() // the request removes all settings that it does not contain
				own.Name, own.Value = retentionSetting, &unlimited
				resource.Configs = append(resource.Configs, own)
			}
		}
		return nil, nil, false
	})
}

// kafkaLog logs the broker's warnings and errors.
type kafkaLog struct{ log *slog.Logger }

func (l kafkaLog) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("embedded Kafka: " + fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.log.Warn("embedded Kafka: " + fmt.Sprintf(format, args...))
	default:
	}
}

var errNoRetention = errors.New("no retention")

func keptRetention(value string) (time.Duration, error) {
	ms, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", backend.KeptRetention, err)
	}
	if ms < 0 {
		return 0, errNoRetention
	}
	return time.Duration(ms) * time.Millisecond, nil
}
