package slots

import (
	"errors"
	"maps"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	inFlight = prometheus.NewDesc(
		"caddy_slots_in_flight", "Requests that an upstream works on.", []string{"upstream"}, nil,
	)
	waiting = prometheus.NewDesc("caddy_slots_waiting", "Requests that wait for a slot.", nil, nil)
	refused = prometheus.NewDesc("caddy_slots_refused_total", "Requests that found no slot in time.", nil, nil)
)

// register makes what the desk counts metrics of a configuration, whose first handler does it for all.
func register(registry *prometheus.Registry, d *desk) error {
	if err := registry.Register(d); err != nil {
		if _, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); !ok {
			return err
		}
	}
	return nil
}

// Describe implements prometheus.Collector.
func (d *desk) Describe(to chan<- *prometheus.Desc) {
	to <- inFlight
	to <- waiting
	to <- refused
}

// Collect implements prometheus.Collector.
func (d *desk) Collect(to chan<- prometheus.Metric) {
	d.mu.Lock()
	taken, line, no := maps.Clone(d.taken), d.line.Len(), d.refused
	d.mu.Unlock()
	for address, count := range taken {
		to <- prometheus.MustNewConstMetric(inFlight, prometheus.GaugeValue, float64(count), address)
	}
	to <- prometheus.MustNewConstMetric(waiting, prometheus.GaugeValue, float64(line))
	to <- prometheus.MustNewConstMetric(refused, prometheus.CounterValue, float64(no))
}
