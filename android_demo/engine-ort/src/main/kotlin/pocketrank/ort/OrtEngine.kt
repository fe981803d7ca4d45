package pocketrank.ort

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import pocketrank.BadBundle
import pocketrank.BadInput
import pocketrank.Engine
import pocketrank.Graph
import pocketrank.Run
import pocketrank.Tensor
import pocketrank.Type
import pocketrank.oneLine
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * Graphs by onnxruntime: `com.microsoft.onnxruntime:onnxruntime` on the JVM, `onnxruntime-android` on a phone, which have
 * the same API. Models are opened by their path, never as bytes on the heap.
 *
 * Builds since 1.29 have telemetry, on by default, which writes below the home folder as soon as the library is there,
 * whatever `OrtEnvironment.setTelemetry` says later. `ORT_DISABLE_TELEMETRY=1` in the environment turns it off: on Android
 * this class sets it, a JVM has to be started with it.
 *
 * @param threads that a run may use; one is best for graphs as small as these.
 * @throws BadInput telemetry cannot be turned off.
 */
class OrtEngine(private val threads: Int = 1) : Engine {
    override val name get() = "onnx"
    override val suffix get() = ".onnx"
    private val environment: OrtEnvironment

    init {
        silence()
        environment = OrtEnvironment.getEnvironment().apply { setTelemetry(false) }
    }

    override fun open(path: File, constants: List<Tensor>): Graph {
        val values = constants.associate { it.name to tensor(it) }
        return told(path, "load") {
            OrtSession.SessionOptions().use { options ->
                options.setIntraOpNumThreads(threads)
                options.setInterOpNumThreads(1)
                if (values.isNotEmpty()) options.addExternalInitializers(values)
                OrtGraph(path, environment.createSession(path.path, options), values)
            }
        }
    }

    /** @property constants the session reads them where they are, so they live as long as it. */
    private inner class OrtGraph(
        private val path: File,
        private val session: OrtSession,
        private val constants: Map<String, OnnxTensor>,
    ) : Graph {
        override val isFixed get() = false

        override fun bind(inputs: List<Tensor>, outputs: List<Tensor>): Run =
            told(path, "run") { OrtRun(path, session, inputs.associate { it.name to tensor(it) }, outputs) }

        override fun close() {
            session.close()
            constants.values.forEach(OnnxTensor::close)
        }
    }

    private inner class OrtRun(
        private val path: File,
        private val session: OrtSession,
        private val inputs: Map<String, OnnxTensor>,
        outputs: List<Tensor>,
    ) : Run {
        private val pinned = outputs.associate { it.name to tensor(it) }
        private val wanted = session.outputNames - pinned.keys

        override fun run(): Map<String, Tensor> = told(path, "run") {
            session.run(inputs, wanted, pinned).use { found ->
                if (wanted.isEmpty()) emptyMap() else wanted.associateWith { copied(it, found.get(it).get() as OnnxTensor) }
            }
        }

        override fun close() = (inputs.values + pinned.values).forEach(OnnxTensor::close)
    }

    /** `android.system.Os.setenv`, where there is one: this module is the JVM's, too, and names no Android class. */
    private fun silence() {
        try {
            Class.forName("android.system.Os")
                .getMethod("setenv", String::class.java, String::class.java, Boolean::class.javaPrimitiveType)
                .invoke(null, TELEMETRY_OFF, "1", true)
        } catch (_: ReflectiveOperationException) {
            if (System.getenv(TELEMETRY_OFF) != "1") {
                throw BadInput("onnxruntime would write telemetry below the home folder; start with $TELEMETRY_OFF=1")
            }
        }
    }

    private fun tensor(tensor: Tensor): OnnxTensor = when (tensor.type) {
        Type.F32 -> OnnxTensor.createTensor(environment, tensor.floats, tensor.shape)
        Type.I32 -> OnnxTensor.createTensor(environment, tensor.ints, tensor.shape)
        Type.I64 -> OnnxTensor.createTensor(environment, tensor.longs, tensor.shape)
        Type.I8 -> OnnxTensor.createTensor(environment, tensor.data, tensor.shape, OnnxJavaType.INT8)
    }

    private fun copied(name: String, found: OnnxTensor): Tensor {
        val floats = found.floatBuffer // a copy, on the heap
        val data = ByteBuffer.allocate(4 * floats.remaining()).order(ByteOrder.LITTLE_ENDIAN)
        data.asFloatBuffer().put(floats)
        return Tensor(name, Type.F32, found.info.shape, data)
    }

    /** What an engine raises on a broken graph is its own affair; an app is told what and where. */
    private fun <T> told(path: File, what: String, run: () -> T): T = try {
        run()
    } catch (error: OrtException) {
        throw BadBundle("$path: engine onnx cannot $what it (${oneLine(error.message)}); export the bundle again")
    }

    private companion object {
        const val TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"
    }
}
