package pocketrank.tflite

import org.tensorflow.lite.Interpreter
import pocketrank.BadBundle
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
 * Graphs by TensorFlow Lite, opened by their path. Shapes are fixed, and B is 1.
 *
 * Compiled, and never run: see README.md.
 *
 * @param threads that a run may use; one is best for graphs as small as these.
 */
class TfliteEngine(private val threads: Int = 1) : Engine {
    override val name get() = "tflite"
    override val suffix get() = ".tflite"

    override fun open(path: File, constants: List<Tensor>): Graph {
        require(constants.isEmpty()) { "$path: a TFLite graph takes no constants from outside" }
        return told(path, "load") {
            val interpreter = Interpreter(path, Interpreter.Options().setNumThreads(threads))
            TfliteGraph(path, interpreter, interpreter.signatureKeys.first())
        }
    }

    /** One graph; its interpreter has buffers of its own, into which a run copies. */
    private inner class TfliteGraph(
        private val path: File,
        private val interpreter: Interpreter,
        private val signature: String,
    ) : Graph {
        override val isFixed get() = true

        override fun bind(inputs: List<Tensor>, outputs: List<Tensor>): Run {
            val fed = inputs.associate { it.name to it.data as Any }
            val written = HashMap<String, Any>()
            val free = ArrayList<Tensor>()
            told(path, "run") {
                for (name in interpreter.getSignatureOutputs(signature)) {
                    val tensor = outputs.find { it.name == name } ?: unbound(name).also(free::add)
                    written[name] = tensor.data
                }
            }
            return object : Run {
                override fun run(): Map<String, Tensor> {
                    (inputs + outputs + free).forEach { it.data.rewind() }
                    told(path, "run") { interpreter.runSignature(fed, written, signature) }
                    (outputs + free).forEach { it.data.rewind() }
                    return free.associateBy { it.name }
                }

                override fun close() = Unit
            }
        }

        private fun unbound(name: String): Tensor {
            val told = interpreter.getOutputTensorFromSignature(name, signature)
            val data = ByteBuffer.allocateDirect(told.numBytes()).order(ByteOrder.nativeOrder())
            return Tensor(name, Type.F32, LongArray(told.numDimensions()) { told.shape()[it].toLong() }, data)
        }

        override fun close() = interpreter.close()
    }

    private fun <T> told(path: File, what: String, run: () -> T): T = try {
        run()
    } catch (error: RuntimeException) { // what an engine raises on a broken graph is its own affair
        throw BadBundle("$path: engine tflite cannot $what it (${oneLine(error.message)}); export the bundle again")
    }
}
